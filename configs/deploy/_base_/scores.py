"""An EoMT whose graph gives class scores: label maps are then those of PyTorch.

Scores are averaged where windows overlap and brought to the original size before the best class is
taken, as in the published evaluation. With labels (``labels.py``) neither can be done.
"""

codebase_config = dict(
    type="mmseg",
    task="Segmentation",
    model_type="eomt",
    with_argmax=False,
    # What registers this package with MMDeploy.
    module=["mmseg_eomt", "mmseg_eomt.deploy.mmdeploy"],
)
