"""EoMT with DINOv2 ViT-L/14 on Cityscapes, the recipe of its authors: 1024x1024 crops, 107 epochs.

Published mIoU: 84.2 by the authors of EoMT (README of tue-mps/eomt, single scale).

Source: configs/dinov2/cityscapes/semantic/eomt_large_1024.yaml of tue-mps/eomt at 7bd19dd: 100
queries (LightlyTrain's protocol has 200). Steps of warm-up and annealing are absolute, as
published there: with another ``train_cfg.max_iters`` they stay where they are.
"""

_base_ = [
    "../_base_/models/eomt_dinov2.py",
    "../_base_/datasets/cityscapes.py",
    "../_base_/schedules/eomt_cityscapes_107e.py",
    "../_base_/default_runtime.py",
]

model = dict(backbone=dict(arch="vitl14", image_size=_base_.crop_size))
train_dataloader = dict(batch_size=1)

# Mixed precision in float16 with a loss scale, as published; everything decays, as in the base.
optim_wrapper = dict(precision="fp16")
param_scheduler = dict(warmup=(500, 1_000))
default_hooks = dict(
    annealing=dict(starts=[3_317, 6_634, 9_951, 13_268], ends=[6_634, 9_951, 13_268, 16_585])
)
