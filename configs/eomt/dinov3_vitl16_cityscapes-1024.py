"""EoMT with DINOv3 ViT-L/16 on Cityscapes: 1024x1024 crops, 107 epochs, 200 queries.

Published mIoU: 84.4 by LightlyTrain (documentation, single scale).
"""

_base_ = [
    "../_base_/models/eomt.py",
    "../_base_/datasets/cityscapes.py",
    "../_base_/schedules/eomt_cityscapes_107e.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(arch="vitl16", image_size=_base_.crop_size), decode_head=dict(num_queries=200)
)
train_dataloader = dict(batch_size=1)
