"""Patch kernels for images of another number of channels."""

from __future__ import annotations

import torch
from torch import Tensor


def fit_channels(kernel: Tensor, wanted: int) -> tuple[Tensor, str]:
    """A kernel for images of ``wanted`` channels.

    Args:
        kernel (Tensor): ``[C, channels, p, p]``.
        wanted (int): Channels of the images.

    Returns:
        tuple[Tensor, str]: ``[C, wanted, p, p]``, and what was done, for people. To 1 channel, all
        kernels are added up: a grey image in every channel gave the same. From 1, its kernel is
        shared. To fewer, the first are kept. To more, new ones begin at zero.
    """
    found = kernel.shape[1]
    if wanted == 1:
        return kernel.sum(1, keepdim=True), "kernels of all channels added up"
    if found == 1:
        return kernel.expand(-1, wanted, -1, -1) / wanted, f"the one kernel shared, 1/{wanted} each"
    if wanted < found:
        return kernel[:, :wanted], f"first {wanted} channels taken, {found - wanted} left out"
    new = kernel.new_zeros(kernel.shape[0], wanted - found, *kernel.shape[2:])
    done = f"first {found} channels taken, {wanted - found} new ones at zero: no influence at first"
    return torch.cat((kernel, new), dim=1), done
