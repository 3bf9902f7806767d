"""DINOv2 ViT-S/14, from released weights, on one GPU or a few CPU cores."""

_base_ = "./_base_/small.py"

model = dict(backbone=dict(arch="vits14"))
