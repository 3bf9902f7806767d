"""EoMT with DINOv3 ViT-L/16 on ADE20K: 512x512 crops, 40,000 steps, 100 queries.

Published mIoU: 59.1 by LightlyTrain (documentation, single scale).
"""

_base_ = [
    "../_base_/models/eomt.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/eomt_40k.py",
    "../_base_/default_runtime.py",
]

model = dict(backbone=dict(arch="vitl16"))
train_dataloader = dict(batch_size=4)
