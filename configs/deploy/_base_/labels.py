"""An EoMT whose graph gives label maps, int32 ``[N, 1, H, W]``: small, and nothing left to do.

For programs that run the graph on one window an image and want no more. Maps are resized to the
nearest label, and windows meet in the middle of their overlap, so that mIoU is not that of PyTorch.
"""

_base_ = "./scores.py"

codebase_config = dict(with_argmax=True)
