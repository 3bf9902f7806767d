"""Position tables for grids of any size: learned ones resampled, rotary ones made.

Shape legend: N patches = h * w, C channels, D channels of an attention head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor


class GridCache:
    """Keeps the tables of the last few grids, so that no forward pass builds one twice.

    Args:
        capacity (int): How many tables are kept; the oldest goes first. Defaults to 32.
    """

    def __init__(self, *, capacity: int = 32) -> None:
        self.capacity = capacity
        self._tables: dict[Hashable, Tensor] = {}

    def get(self, key: Hashable, build: Callable[[], Tensor]) -> Tensor:
        """Returns the table of ``key``, built by ``build`` at the first call.

        In a compiled or exported graph the table is part of the graph instead: a tensor kept
        from one would die with its memory pool, and grids may be symbolic there.
        """
        if torch.compiler.is_compiling():
            return build()
        table = self._tables.get(key)
        if table is None:
            # A table made under inference mode could never be used in training again.
            with torch.inference_mode(False), torch.no_grad():
                table = build()
            if len(self._tables) >= self.capacity:
                del self._tables[next(iter(self._tables))]
            self._tables[key] = table
        return table


def resample_matrix(old: int, new: int, *, device: torch.device) -> Tensor:
    """Weights of antialiased bicubic resampling along one axis.

    Resampling is linear and separable, so two small matrices do what an interpolation does,
    gradients and export included.

    Args:
        old (int): Length of the axis before.
        new (int): Length after.
        device (torch.device): Where the result lies.

    Returns:
        Tensor: ``[new, old]``, float32.
    """
    # Along the width of a full image: torch 2.15's CPU kernel is wrong for images of width 1.
    unit = torch.eye(old, device=device)[None, None]  # [1, 1, old, old]
    moved = F.interpolate(unit, size=(old, new), mode="bicubic", antialias=True)
    return moved[0, 0].t().contiguous()


def keys_matrix(old: int, new: int, *, device: torch.device) -> Tensor:
    """As :func:`resample_matrix`, by plain arithmetic.

    An exporter would write the interpolation as an antialiased Resize, which TensorRT does not
    have. The kernel is Keys' cubic with a = -0.5, as wide as a step where the axis shrinks.

    Args:
        old (int): Length of the axis before.
        new (int): Length after; may be a symbol of the exporter.
        device (torch.device): Where the result lies.

    Returns:
        Tensor: ``[new, old]``, float32.
    """
    # Whole numbers as long as possible: their float32 arithmetic is exact.
    places = 2 * torch.arange(old, device=device, dtype=torch.float32) + 1
    centres = 2 * torch.arange(new, device=device, dtype=torch.float32) + 1
    length = (centres[-1] + 1) / 2  # new, which may be a symbol, as a tensor
    apart = places * length - centres[:, None] * old  # in units of 1 / (2 * new)
    distance = apart.abs() / (2 * length.clamp(min=old))
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    return weights / weights.sum(dim=1, keepdim=True)


def resample_table(table: Tensor, grid: tuple[int, int], rows: Tensor, columns: Tensor) -> Tensor:
    """Resamples a learned position table to another grid.

    Args:
        table (Tensor): ``[1, h * w, C]`` of the grid ``(h, w)``.
        grid (tuple[int, int]): ``(h, w)`` of ``table``.
        rows (Tensor): ``[h', h]`` from :func:`resample_matrix`.
        columns (Tensor): ``[w', w]`` likewise.

    Returns:
        Tensor: ``[1, h' * w', C]`` in the dtype of ``table``.
    """
    # Autocast does not know meta tensors, whose operations are only counted.
    with nullcontext() if table.is_meta else torch.autocast(table.device.type, enabled=False):
        planes = table.float().reshape(*grid, -1)  # [h, w, C]
        # (A tensordot would be exported as Einsum.)
        planes = (rows @ planes.flatten(1)).reshape(-1, *planes.shape[1:])  # [h', w, C]
        resampled: Tensor = columns @ planes  # [h', w', C]
    return resampled.reshape(1, -1, table.shape[-1]).to(table.dtype)


def rope_angles(
    grid: tuple[int, int], *, head_dims: int, temperature: float, device: torch.device
) -> Tensor:
    """Angles of DINOv3's axial rotary positions (arXiv 2508.10104; facebookresearch/dinov3).

    Patch centres are mapped to [-1, 1] on each axis; the period of frequency k is
    ``temperature ** (4 * k / head_dims)``.

    Args:
        grid (tuple[int, int]): ``(h, w)``.
        head_dims (int): D, a multiple of 4.
        temperature (float): 100 for DINOv3.
        device (torch.device): Where the result lies.

    Returns:
        Tensor: ``[N, D / 2]`` in radians, float32: the row's angles, then the column's.
    """
    rows, columns = (
        2 * (torch.arange(side, device=device, dtype=torch.float32) + 0.5) / side - 1
        for side in grid
    )
    exponents = torch.arange(head_dims // 4, device=device, dtype=torch.float32)
    periods = temperature ** (exponents * 4 / head_dims)
    centres = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)  # [h, w, 2]
    angles = 2 * math.pi * centres.reshape(-1, 2, 1) / periods
    return angles.flatten(1)


def rope_table(angles: Tensor) -> Tensor:
    """Sines and cosines in the rotate-half layout that timm's attention takes.

    Args:
        angles (Tensor): ``[N, D / 2]``.

    Returns:
        Tensor: ``[N, 2 * D]``: D sines, then D cosines.
    """
    sine, cosine = angles.sin(), angles.cos()
    return torch.cat((sine, sine, cosine, cosine), dim=-1)
