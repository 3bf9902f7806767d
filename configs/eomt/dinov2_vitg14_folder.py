"""EoMT with DINOv2 ViT-g/14 on one's own folders: 512x512 crops, 40,000 steps, 100 queries.

Published mIoU: none; it depends on the data. Same recipe as the ADE20K config of this model.

    python tools/train.py configs/eomt/dinov2_vitg14_folder.py --data DATA.yaml
"""

_base_ = [
    "../_base_/models/eomt_dinov2.py",
    "../_base_/datasets/folder.py",
    "../_base_/schedules/eomt_40k.py",
    "../_base_/default_runtime.py",
]

model = dict(backbone=dict(arch="vitg14"))
train_dataloader = dict(batch_size=2)
