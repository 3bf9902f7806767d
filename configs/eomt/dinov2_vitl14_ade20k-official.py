"""EoMT with DINOv2 ViT-L/14 on ADE20K, the recipe of its authors: 512x512 crops, 31 epochs.

Published mIoU: 58.4 by the authors of EoMT (README of tue-mps/eomt, single scale).

Source: configs/dinov2/ade20k/semantic/eomt_large_512.yaml of tue-mps/eomt at 7bd19dd. Steps of
warm-up and annealing are absolute, as published there: with another ``train_cfg.max_iters`` they
stay where they are. For shorter runs take ``dinov2_vitl14_ade20k.py``, where they are shares.
"""

_base_ = [
    "../_base_/models/eomt_dinov2.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/eomt_40k.py",
    "../_base_/default_runtime.py",
]

model = dict(backbone=dict(arch="vitl14"))
train_dataloader = dict(batch_size=4)

# 1,263 whole batches of 16 out of 20,210 images an epoch.
train_cfg = dict(max_iters=20_210 // 16 * 31)
# Mixed precision in float16 with a loss scale, as published; everything decays, as in the base.
optim_wrapper = dict(precision="fp16")
param_scheduler = dict(warmup=(500, 1_000))
default_hooks = dict(
    annealing=dict(starts=[6_520, 13_040, 19_560, 26_080], ends=[13_040, 19_560, 26_080, 32_600])
)
