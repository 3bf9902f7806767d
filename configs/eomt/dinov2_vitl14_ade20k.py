"""EoMT with DINOv2 ViT-L/14 on ADE20K: 512x512 crops, 40,000 steps, 100 queries.

Published mIoU: none for this recipe; the authors of EoMT report theirs for the one in
``dinov2_vitl14_ade20k-official.py``.
"""

_base_ = [
    "../_base_/models/eomt_dinov2.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/eomt_40k.py",
    "../_base_/default_runtime.py",
]

model = dict(backbone=dict(arch="vitl14"))
train_dataloader = dict(batch_size=4)
