"""What every run shares: registered components, hooks, logging, reproducibility.

TensorBoard is on. For Weights & Biases or MLflow instead, one option is enough:
    --cfg-options visualizer.vis_backends.1.type=WandbBackend
    --cfg-options visualizer.vis_backends.1.type=MLflowBackend
"""

# Importing the package registers its components, before anything is built by name.
custom_imports = dict(imports=["mmseg_eomt"], allow_failed_imports=False)
default_scope = "mmseg"
runner_type = "SegmentationRunner"

env_cfg = dict(
    # Training crops have one size, so measuring convolution algorithms once pays off.
    cudnn_benchmark=True,
    # Workers are forked: they share the file list and start in milliseconds. OpenCV's own
    # threads would compete with them.
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    # Without CUDA it is gloo. A process that does not answer for so many seconds ends the others;
    # it must cover the longest wait for process 0, which writes iter_N.pth and exports weights.
    dist_cfg=dict(backend="nccl", timeout=600),
)
# Seed 0 as in the official recipe; deterministic kernels cost speed, so they are a choice.
randomness = dict(seed=0, deterministic=False)

visualizer = dict(
    type="SegLocalVisualizer",
    name="visualizer",
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
)
log_processor = dict(by_epoch=False)
log_level = "INFO"
load_from = None
# True, or dict(mode='max-autotune-no-cudagraphs'): torch.compile, block by block.
compile = False
resume = False

tta_model = dict(type="EoMTTTAModel")
