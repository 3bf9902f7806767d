"""DINOv2 ViT-S/14 from scratch on 8 GPUs: the published recipe with patches of 14 pixels."""

_base_ = "./_base_/dinov2.py"

model = dict(
    backbone=dict(arch="vits14"),
    # Less than the published 0.3 for ViT-L: a small model has less to spare.
    drop_path_rate=0.1,
)
train_dataloader = dict(batch_size=128)
