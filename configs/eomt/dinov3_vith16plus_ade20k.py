"""EoMT with DINOv3 ViT-H+/16 on ADE20K: 512x512 crops, 40,000 steps, 100 queries.

Published mIoU: none for this model and data.
"""

_base_ = [
    "../_base_/models/eomt.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/eomt_40k.py",
    "../_base_/default_runtime.py",
]

model = dict(backbone=dict(arch="vith16plus"))
train_dataloader = dict(batch_size=2)
