"""EoMT on a DINOv3 ViT. A config adds ``arch``, and ``num_queries`` where it is not 100.

Numbers are those of the official code (models/eomt.py, training/mask_classification_loss.py of
tue-mps/eomt) unless a comment says otherwise.
"""

model = dict(
    type="EoMTSegmentor",
    data_preprocessor=dict(
        type="EoMTDataPreProcessor",
        # ImageNet statistics, which DINOv2 and DINOv3 (lvd1689m) were trained with. Weights named
        # sat493m need mean (109.65, 104.805, 75.48) and std (54.315, 39.78, 36.465).
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        seg_pad_val=255,
    ),
    backbone=dict(
        type="DINOv3",
        # Released weights under timm's name of the architecture. A file or URL of Meta's, timm's
        # or transformers' layout is given by
        #     --cfg-options model.backbone.pretrained=/path/to/dinov3_vits16.pth
        # and from scratch is model.backbone.pretrained=None.
        pretrained="timm",
        # rope_rescale stays None: DINOv3's random scale of positions was most likely off in the
        # official training (transformers loads models in eval mode). LightlyTrain has it on (2.0).
        image_size=512,
    ),
    decode_head=dict(
        type="EoMTHead",
        # Taken from the dataset's classes before the model is built.
        num_classes=None,
        num_queries=100,
        loss_decode=dict(
            type="MaskClassificationLoss",
            num_points=12544,
            oversample_ratio=3.0,
            importance_ratio=0.75,
            class_weight=2.0,
            mask_weight=5.0,
            dice_weight=5.0,
            no_object_weight=0.1,
            # As in every published EoMT an unlabelled pixel is a negative of each mask. 'skip'
            # leaves it out of matching and mask losses.
            ignore_rule="negative",
        ),
        ignore_index=255,
    ),
    # The published evaluation: squares of the short side, overlaps averaged.
    test_cfg=dict(mode="window"),
)
