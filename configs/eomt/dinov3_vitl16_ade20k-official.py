"""EoMT with DINOv3 ViT-L/16 on ADE20K, the recipe of its authors: 512x512 crops, 16 epochs.

Published mIoU: 59.5 by the authors of EoMT (README of tue-mps/eomt, single scale).

Source: configs/dinov3/ade20k/semantic/eomt_large_512.yaml of tue-mps/eomt at 7bd19dd. Steps of
warm-up and annealing are absolute, as published there: with another ``train_cfg.max_iters`` they
stay where they are. For shorter runs take ``dinov3_vitl16_ade20k.py``, where they are shares.
"""

_base_ = [
    "../_base_/models/eomt.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/eomt_40k.py",
    "../_base_/default_runtime.py",
]

model = dict(backbone=dict(arch="vitl16"))
train_dataloader = dict(batch_size=4)

# 1,263 whole batches of 16 out of 20,210 images an epoch.
train_cfg = dict(max_iters=20_210 // 16 * 16)
optim_wrapper = dict(
    # Mixed precision in float16 with a loss scale, as published; everything decays, as in the base.
    precision="fp16",
    optimizer=dict(lr=2e-4),
    paramwise_cfg=dict(
        layer_decay=1.0,
        # The published file says lr_mult 0.1: blocks before the joint ones at 2e-5, joint blocks
        # and head at 2e-4. The published code never applies it (training/lightning_module.py: its
        # branch repeats the condition of the one before), so that code, as released, trains every
        # block at 2e-4. We follow the file: someone chose that number, and a tenth keeps the
        # pretrained blocks near DINOv3, which the authors call delicate to fine-tune (their issue
        # 46). Which of the two gave 59.5 is not known. For what the code does:
        #     --cfg-options optim_wrapper.paramwise_cfg.backbone_lr_mult=1.0
        backbone_lr_mult=0.1,
    ),
)
param_scheduler = dict(warmup=(2_000, 3_000))
default_hooks = dict(
    annealing=dict(starts=[0, 6_520, 9_780, 13_040], ends=[3_000, 9_780, 13_040, 16_300])
)
