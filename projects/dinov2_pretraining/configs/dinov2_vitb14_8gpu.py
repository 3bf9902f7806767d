"""DINOv2 ViT-B/14 from scratch on 8 GPUs: the published recipe with patches of 14 pixels."""

_base_ = "./_base_/dinov2.py"

model = dict(
    backbone=dict(arch="vitb14"),
    # Between none and the published 0.3 for ViT-L.
    drop_path_rate=0.2,
)
train_dataloader = dict(batch_size=128)
