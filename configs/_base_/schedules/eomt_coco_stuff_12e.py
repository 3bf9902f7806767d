"""12 epochs of COCO-Stuff: 7,392 whole batches of 16 out of 118,287 images an epoch.

The number of epochs is LightlyTrain's; the authors of EoMT have no recipe for these data. The
warm-ups have the published number of steps, and stay shares of the run.
"""

_base_ = "./eomt_40k.py"

train_cfg = dict(max_iters=118_287 // 16 * 12, val_interval=4_000)
param_scheduler = dict(warmup=(500 / train_cfg["max_iters"], 1_000 / train_cfg["max_iters"]))
default_hooks = dict(checkpoint=dict(interval=4_000))
