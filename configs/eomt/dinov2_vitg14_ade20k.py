"""EoMT with DINOv2 ViT-g/14 on ADE20K: 512x512 crops, 40,000 steps, 100 queries.

Published mIoU: none for this model and data.
"""

_base_ = [
    "../_base_/models/eomt_dinov2.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/eomt_40k.py",
    "../_base_/default_runtime.py",
]

model = dict(backbone=dict(arch="vitg14"))
train_dataloader = dict(batch_size=2)
