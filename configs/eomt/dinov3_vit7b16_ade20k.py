"""EoMT with DINOv3 ViT-7B/16 on ADE20K: 512x512 crops, 40,000 steps, 100 queries.

Published mIoU: none for this model and data.

Weights, gradients and AdamW state take about 107 GB in float32, so a GPU with 141 GB, or
``model.backbone.frozen_blocks="encoder"`` to train the joint blocks and the head only.
"""

_base_ = [
    "../_base_/models/eomt.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/eomt_40k.py",
    "../_base_/default_runtime.py",
]

model = dict(backbone=dict(arch="vit7b16", with_cp=True))
train_dataloader = dict(batch_size=1)
