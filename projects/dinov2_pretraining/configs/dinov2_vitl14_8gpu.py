"""DINOv2 ViT-L/14 from scratch on 8 GPUs: the published recipe with patches of 14 pixels."""

_base_ = "./_base_/dinov2.py"

model = dict(
    backbone=dict(arch="vitl14"),
)
train_dataloader = dict(batch_size=64)
