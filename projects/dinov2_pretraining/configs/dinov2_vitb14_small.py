"""DINOv2 ViT-B/14, from released weights, on one GPU or a few CPU cores."""

_base_ = "./_base_/small.py"

model = dict(backbone=dict(arch="vitb14"))
