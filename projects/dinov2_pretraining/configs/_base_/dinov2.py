"""DINOv2 pretraining: the method, its data and its schedules.

Numbers without another source are those of facebookresearch/dinov2's ssl_default_config.yaml.
Lengths given there in epochs (100 epochs of 1,250 steps) are shares of the run, so that a shorter
run keeps its shape.
"""

# The folder of this project has to be on sys.path: `mmseg_eomt.pretrain` and tools/pretrain.py of
# the project see to it, other tools need PYTHONPATH.
custom_imports = dict(imports=["mmseg_eomt", "dinov2_pretraining"], allow_failed_imports=False)
default_scope = "mmseg"
runner_type = "SegmentationRunner"

global_size = 224
local_size = 98  # Meta's vitl14.yaml; 96 for patches of 16
patch_size = 14

# --- model ---------------------------------------------------------------------------------

model = dict(
    type="DINOv2Pretraining",
    data_preprocessor=dict(
        type="ViewPreprocessor",
        # ImageNet's, as the released weights expect.
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
    ),
    backbone=dict(type="DINOv2", arch="vits14", image_size=global_size, pretrained=None),
    # Class tokens and patches share a head unless ibot_head is one, too.
    head=dict(hidden_channels=2048, bottleneck_channels=256, num_prototypes=65536),
    ibot_head=None,
    drop_path_rate=0.3,
    layer_scale=1e-5,
    centring="softmax",  # or 'sinkhorn'
    student_temp=0.1,
    dino_weight=1.0,
    ibot_weight=1.0,
    koleo_weight=0.1,
)

# --- data ----------------------------------------------------------------------------------

train_dataloader = dict(
    # The most images a process takes at once; what is missing to the global batch is accumulated.
    batch_size=64,
    num_workers=10,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    # Its order and the views depend on the seed and the place in the run alone: resumes are exact.
    sampler=dict(type="StepSampler", shuffle=True),
    collate_fn=dict(
        type="collate_views",
        patch_size=patch_size,
        mask_probability=0.5,
        mask_ratio=(0.1, 0.5),
    ),
    dataset=dict(
        type="UnlabelledImages",
        data=None,  # folders; --data
        pipeline=[
            dict(type="SeedSample"),
            dict(
                type="MultiCropViews",
                global_size=global_size,
                local_size=local_size,
                num_local=8,
                global_scale=(0.32, 1.0),
                local_scale=(0.05, 0.32),
            ),
        ],
    ),
)
val_dataloader = val_cfg = val_evaluator = None

# --- schedule ------------------------------------------------------------------------------

train_cfg = dict(type="PretrainLoop", max_iters=125_000, global_batch_size=1024)
optim_wrapper = dict(
    type="MixedPrecisionOptimWrapper",
    constructor="PretrainOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=0.004, betas=(0.9, 0.999)),
    paramwise_cfg=dict(layer_decay=0.9, patch_embed_lr_mult=0.2),
    clip_grad=dict(max_norm=3.0),
    precision="auto",  # bf16 where a GPU has it
)
# lr is that of 1024 images a step (Meta's sqrt_wrt_1024).
auto_scale_lr = dict(enable=True, base_batch_size=1024, rule="sqrt")

default_hooks = dict(
    schedule=dict(
        type="PretrainScheduleHook",
        warmup=0.1,
        final_lr=1e-6,
        weight_decay=(0.04, 0.4),
        teacher_temp=(0.04, 0.07),
        teacher_temp_warmup=0.3,
        momentum=(0.992, 1.0),
        freeze_last_layer=0.01,
    ),
    collapse=dict(type="CollapseHook"),
    export=dict(type="ExportBackboneHook"),
    progress=dict(type="ProgressHook"),
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    checkpoint=dict(type="SafeCheckpointHook", interval=1000, max_keep_ckpts=2),
)
custom_hooks = [
    dict(type="TrainingDataHook"),
    dict(type="PatchPictureHook"),
    # Give folder (a subfolder of images for each class) to see k-NN and linear accuracy.
    dict(type="LabelledAccuracyHook", folder=None),
]

# --- runtime -------------------------------------------------------------------------------

env_cfg = dict(
    cudnn_benchmark=True,
    # Forked workers share the list of files; OpenCV's own threads would compete with them.
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
randomness = dict(seed=0, deterministic=False)
visualizer = dict(
    type="Visualizer",
    name="visualizer",
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
)
log_processor = dict(by_epoch=False)
log_level = "INFO"
load_from = None
resume = False
