"""ADE20K: 20,210 training and 2,000 validation images, 150 classes.

``data/ade/ADEChallengeData2016`` holds ``images/{training,validation}`` and
``annotations/{training,validation}``, as MMSegmentation's dataset preparation describes.

The augmentation is that of the official EoMT code (datasets/transforms.py of tue-mps/eomt): colour
at the original size, flip, a scale that keeps the aspect, a crop padded at right and bottom.
"""

dataset_type = "ADE20KDataset"
data_root = "data/ade/ADEChallengeData2016"
crop_size = (512, 512)

train_pipeline = [
    # Draws depend on seed and step alone, not on the number of workers or GPUs.
    dict(type="SeedSample"),
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="EoMTColorJitter"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="ScaleJitterCrop", size=crop_size, scale=(0.5, 2.0)),
    dict(type="PackByteInputs"),
]
# The short side becomes that of the crop; the model cuts its windows. The label map keeps its size:
# predictions are brought to it, and mIoU is measured there.
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="ResizeShortSide", size=crop_size[0]),
    dict(type="LoadAnnotations"),
    dict(type="PackByteInputs"),
]
# For tools/test.py --tta: five scales, each also mirrored.
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [
                dict(type="ResizeShortSide", size=round(crop_size[0] * scale))
                for scale in (0.5, 0.75, 1.0, 1.25, 1.5)
            ],
            [
                dict(type="RandomFlip", prob=0.0, direction="horizontal"),
                dict(type="RandomFlip", prob=1.0, direction="horizontal"),
            ],
            [dict(type="LoadAnnotations")],
            [dict(type="PackByteInputs")],
        ],
    ),
]

train_dataloader = dict(
    # The most images that one process takes at once; the global batch is in train_cfg, and what
    # does not fit at once is accumulated.
    batch_size=16,
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="StepSampler"),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="SegmentationMetric")
test_evaluator = val_evaluator
