"""One's own images and masks in folders, described by a YAML file or a dict.

    train: {images: train/images, masks: train/masks}
    val: {images: val/images, masks: val/masks}
    classes: {0: road, 1: {name: vehicle, labels: [7, 8]}, 11: unlabelled}
    ignore_classes: [11]

Paths count from the YAML's folder. An image and its mask (PNG or TIFF, class numbers or colours)
have the same file stem; mmseg_eomt/datasets/data_description.py has all that can be written. Number
and names of the classes follow from the file.

The augmentation is that of the official EoMT code (datasets/transforms.py of tue-mps/eomt): colour
at the original size, flip, a scale that keeps the aspect, a crop padded at right and bottom.
"""

dataset_type = "FolderSegDataset"
# Filled by --data (data= in Python). In a config of one's own it is what the YAML holds, as a dict,
# or the path of the YAML, in each of the three dataloaders.
data = None
crop_size = (512, 512)

train_pipeline = [
    # Draws depend on seed and step alone, not on the number of workers or GPUs.
    dict(type="SeedSample"),
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="EoMTColorJitter"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="ScaleJitterCrop", size=crop_size, scale=(0.5, 2.0)),
    dict(type="PackSegInputs"),
]
# The short side becomes that of the crop; the model cuts its windows. The label map keeps its size:
# predictions are brought to it, and mIoU is measured there.
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="ResizeShortSide", size=crop_size[0]),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
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
            [dict(type="PackSegInputs")],
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
        data=data,
        split="train",
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
        data=data,
        split="val",
        pipeline=test_pipeline,
    ),
)
# The split 'test' where the data have one; tools and Python call take 'val' where they do not.
test_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type=dataset_type, data=data, split="test", pipeline=test_pipeline),
)

val_evaluator = dict(type="SegmentationMetric")
test_evaluator = val_evaluator
