"""Changes for a small machine without released weights: own sizes, images unlike photographs.

Not a published recipe: dinov2.py's needs 100,000 steps and large batches, and a few hundred of its
steps end with a teacher that says the same about every image. What small.py changes holds here too.
"""

_base_ = "./small.py"

model = dict(
    backbone=dict(pretrained=None, image_size=224),
    head=dict(num_prototypes=1024),
    # 1e-5 keeps the blocks out of the features for longer than a short run lasts.
    layer_scale=1.0,
)
optim_wrapper = dict(
    # The published rate: there is nothing to lose.
    optimizer=dict(lr=0.004),
)
default_hooks = dict(schedule=dict(freeze_backbone=0))
