"""Changes for a small machine: go on from released weights, few images a step, a short run.

Not a published recipe. What is ours has a reason beside it; the rest is dinov2.py's.
"""

_base_ = "./dinov2.py"

model = dict(
    # The table of released weights keeps its 37 x 37 positions, so that nothing of it is lost.
    backbone=dict(pretrained="timm", image_size=518),
    # Prototypes are compared with the images of a batch: 65,536 for 32 images would mostly be
    # far from all of them. They also cost as much as the backbone on a CPU.
    head=dict(num_prototypes=4096),
    # Dropping paths needs many steps; the released small models were distilled without it.
    drop_path_rate=0.0,
    layer_scale=None,
    # As Meta's vitl14.yaml. The moving centre of 'softmax' is behind a teacher that moves fast.
    centring="sinkhorn",
)
train_dataloader = dict(
    batch_size=32,
    num_workers=2,
    dataset=dict(
        pipeline=[
            dict(type="SeedSample"),
            # Half the local views: they are half of a step's time.
            dict(type="MultiCropViews", global_size=224, local_size=98, num_local=4),
        ]
    ),
)
train_cfg = dict(max_iters=2000, global_batch_size=32)
optim_wrapper = dict(
    # Meta's vitl14.yaml, for long training; small enough not to lose what the weights know.
    optimizer=dict(lr=2e-4),
)
default_hooks = dict(
    schedule=dict(
        # The teacher is an average over 1 / (1 - momentum) steps: few enough for a short run.
        momentum=(0.99, 1.0),
        # At 0.07 the teacher of a short run ends near the logarithm of the number of prototypes:
        # it says nothing. The student's 0.1 then asks for too little sharpness.
        teacher_temp=(0.04, 0.04),
        # New heads give gradients without meaning: the released backbone waits until they fit.
        freeze_backbone=0.1,
    ),
    logger=dict(interval=10),
    checkpoint=dict(interval=200),
)
