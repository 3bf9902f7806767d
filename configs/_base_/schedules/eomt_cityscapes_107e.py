"""107 epochs of Cityscapes: 185 whole batches of 16 out of 2,975 images an epoch.

The number of epochs is that of the official recipe and of LightlyTrain. The warm-ups have the
published number of steps, and stay shares of the run.
"""

_base_ = "./eomt_40k.py"

train_cfg = dict(max_iters=2_975 // 16 * 107, val_interval=1_000)
param_scheduler = dict(warmup=(500 / train_cfg["max_iters"], 1_000 / train_cfg["max_iters"]))
default_hooks = dict(checkpoint=dict(interval=1_000))
