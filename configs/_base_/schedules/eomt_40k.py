"""40,000 steps of 16 images: LightlyTrain's protocol for ADE20K, and the default for own data.

Published numbers: learning rate 1e-4, layer decay 0.8 over all blocks, weight decay 0.05, warm-ups
of 500 (head) and 1,000 (backbone) steps, power 0.9, gradient norm 0.01. They are those of the
official DINOv2 recipe with a round number of steps.

Warm-ups and annealing are shares of the run, so ``train_cfg.max_iters`` can be changed alone.
All steps are optimiser steps.
"""

train_cfg = dict(
    type="AccumulationTrainLoop",
    max_iters=40_000,
    # Images an optimiser step, over all GPUs; train_dataloader.batch_size is what fits at once.
    global_batch_size=16,
    # One more validation follows the last step, so runs shorter than this have one too.
    val_interval=2_000,
)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="MixedPrecisionOptimWrapper",
    # bf16 where a CUDA device computes it natively, else fp32.
    precision="auto",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    clip_grad=dict(max_norm=0.01),
    constructor="LayerDecayOptimWrapperConstructor",
    paramwise_cfg=dict(
        layer_decay=0.8,
        # Everything decays, norms and biases too. So it was in all published results: LightlyTrain
        # left norms, biases and tokens out ('usual') only after it had published its figures.
        decay_exclude="none",
    ),
)
# The rate belongs to a batch of 16; with another one it grows with the square root.
auto_scale_lr = dict(enable=True, base_batch_size=16, rule="sqrt")

param_scheduler = dict(
    type="TwoStageWarmupPolyLR",
    # Head, then backbone: 500 and 1,000 of the published 40,000 steps.
    warmup=(500 / 40_000, 1_000 / 40_000),
    power=0.9,
)

default_hooks = dict(
    # In place of mmengine's: true rates of head and backbone, and losses read once a log line.
    runtime_info=dict(type="TrainingMonitorHook"),
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(
        type="SafeCheckpointHook",
        by_epoch=False,
        interval=2_000,
        save_best="mIoU",
        # Two, so that a disk that damages the newest one still leaves one to resume from.
        max_keep_ckpts=2,
    ),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    # By default the rule behind the official configs: each joint block is annealed over a sixth of
    # the run, the first from 1/6, the last until 5/6.
    annealing=dict(type="MaskAnnealingHook", power=0.9),
    # With several processes: at the start and every so many steps, are their weights the same?
    weight_hash=dict(type="WeightHashHook", interval=1_000),
    progress=dict(type="ProgressHook"),
    visualization=dict(type="PredictionPictureHook"),
)
