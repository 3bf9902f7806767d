"""EoMT with DINOv3 ViT-L+/16 on ADE20K: 512x512 crops, 40,000 steps, 100 queries.

Published mIoU: none for this model and data.
"""

_base_ = [
    "../_base_/models/eomt.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/eomt_40k.py",
    "../_base_/default_runtime.py",
]

# Meta's code defines this architecture but no weights of it are published, so it starts from scratch
# unless model.backbone.pretrained is given.
model = dict(backbone=dict(arch="vitl16plus", pretrained=None))
train_dataloader = dict(batch_size=4)
