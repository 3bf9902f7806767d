"""DINOv2 ViT-S/14 from scratch on one GPU or a few CPU cores, for images unlike photographs."""

_base_ = "./_base_/scratch.py"

model = dict(backbone=dict(arch="vits14"))
