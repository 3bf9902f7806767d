"""EoMT with DINOv2 ViT-L/14 on Cityscapes: 1024x1024 crops, 107 epochs, 200 queries.

Published mIoU: none for this recipe; the authors of EoMT report theirs for the one in
``dinov2_vitl14_cityscapes-1024-official.py``.
"""

_base_ = [
    "../_base_/models/eomt_dinov2.py",
    "../_base_/datasets/cityscapes.py",
    "../_base_/schedules/eomt_cityscapes_107e.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(arch="vitl14", image_size=_base_.crop_size), decode_head=dict(num_queries=200)
)
train_dataloader = dict(batch_size=1)
