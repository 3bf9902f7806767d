"""EoMT on a DINOv2 ViT with registers.

The released weights have patches of 14. Here they are resampled to 16, kernel and position table,
as in the official recipe (``patch_size: 16`` of models/vit.py in tue-mps/eomt): a crop of 512 is
then 32x32 patches with masks at exactly a quarter of the input, and costs what DINOv3 costs.
The native patch needs a crop that 14 divides, such as 518 (LightlyTrain's choice): set
``model.backbone.patch_size=14``, ``model.backbone.image_size`` and the sizes in the pipelines.
"""

_base_ = "./eomt.py"

model = dict(backbone=dict(type="DINOv2", patch_size=16))
