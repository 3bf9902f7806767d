"""EoMT with DINOv3 ViT-L/16 on COCO-Stuff 164k: 512x512 crops, 12 epochs, 200 queries.

Published mIoU: 52.5 by LightlyTrain (documentation of version 0.18, single scale); its earlier
checkpoint of 2025 had 54.4.
"""

_base_ = [
    "../_base_/models/eomt.py",
    "../_base_/datasets/coco_stuff164k.py",
    "../_base_/schedules/eomt_coco_stuff_12e.py",
    "../_base_/default_runtime.py",
]

model = dict(backbone=dict(arch="vitl16"), decode_head=dict(num_queries=200))
train_dataloader = dict(batch_size=4)
