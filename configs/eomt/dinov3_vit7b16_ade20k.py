"""EoMT with DINOv3 ViT-7B/16 on ADE20K: 512x512 crops, 40,000 steps, 100 queries.

Published mIoU: none for this model and data.

Weights, gradients and AdamW state are spread over the GPUs (FSDP2), and checkpoints are folders of
shards. GB (10^9 bytes) a GPU with one image of 512x512 at a time in bf16, as calculated by
mmseg_eomt/engine/watch/cost.py, which says what they stand for and what is not in them; no
run on GPUs has confirmed them yet:

    GPUs  shards  gathered  activations  total
    1     110.4   0.0       0.4          110.8
    4     27.6    3.2       0.4          31.2
    8     13.8    3.2       0.4          17.4
    16    6.9     3.2       0.4          10.5

On one GPU autocast may add 13.8 GB of bfloat16 copies. ``model.backbone.frozen_blocks="encoder"``
trains the joint blocks and the head only, for a fraction of it.
"""

_base_ = [
    "../_base_/models/eomt.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/eomt_40k.py",
    "../_base_/default_runtime.py",
]

model = dict(backbone=dict(arch="vit7b16", with_cp=True))
train_dataloader = dict(batch_size=1)
# With one process nothing is spread.
strategy = dict(type="FSDP2")
