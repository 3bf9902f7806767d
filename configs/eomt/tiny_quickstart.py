"""A tiny EoMT of DINOv3's kind, trained from scratch: learns simple scenes on a CPU in minutes.

Published mIoU: none; it shows that everything works. ``make quickstart`` runs it on a dataset of
its own making, and it takes any other small one:

    python tools/train.py configs/eomt/tiny_quickstart.py --data DATA.yaml
"""

_base_ = [
    "../_base_/models/eomt.py",
    "../_base_/datasets/folder.py",
    "../_base_/schedules/eomt_40k.py",
    "../_base_/default_runtime.py",
]

crop_size = (96, 96)

model = dict(
    backbone=dict(
        arch=dict(embed_dims=96, depth=6, num_heads=4, patch_size=8),
        pretrained=None,
        image_size=crop_size,
    ),
    # A mask has 24x24 values here, so a few points tell as much as 12,544 do at 128x128.
    decode_head=dict(num_queries=20, loss_decode=dict(num_points=512)),
)

train_pipeline = [
    dict(type="SeedSample"),
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="EoMTColorJitter"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="ScaleJitterCrop", size=crop_size, scale=(0.8, 1.5)),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="ResizeShortSide", size=crop_size[0]),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [
                dict(type="ResizeShortSide", size=round(crop_size[0] * scale))
                for scale in (0.75, 1.0, 1.25)
            ],
            [
                dict(type="RandomFlip", prob=0.0, direction="horizontal"),
                dict(type="RandomFlip", prob=1.0, direction="horizontal"),
            ],
            [dict(type="LoadAnnotations")],
            [dict(type="PackSegInputs")],
        ],
    ),
]
train_dataloader = dict(
    batch_size=8, num_workers=1, pin_memory=False, dataset=dict(pipeline=train_pipeline)
)
val_dataloader = dict(num_workers=1, pin_memory=False, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_iters=300, val_interval=100, global_batch_size=8)
# From scratch all blocks learn at one rate, ten times that of fine-tuning.
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(layer_decay=1.0))
auto_scale_lr = dict(base_batch_size=8)
# The head need not wait for new features to settle, and the backbone not for the head.
param_scheduler = dict(warmup=(0.05, 0.05))
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=100))
