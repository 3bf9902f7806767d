"""A safetensors file written tensor by tensor, so that a model need not be in memory as a whole."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from typing import BinaryIO, Protocol

import torch
from torch import Tensor

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Sized(Protocol):
    """What a tensor is, without its values."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def dtype(self) -> torch.dtype: ...


def in_order(sizes: Mapping[str, Sized]) -> list[str]:
    """Names in the order in which :func:`stream_weights` wants the values: wide dtypes first."""
    return sorted(sizes, key=lambda name: (-sizes[name].dtype.itemsize, name))


def stream_weights(
    file: BinaryIO,
    sizes: Mapping[str, Sized],
    values: Iterator[Tensor],
    *,
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file.

    Args:
        file: Open for writing, at its start.
        sizes: Shape and dtype by name.
        values: The tensors in the order of :func:`in_order`; one is held at a time.
        metadata: Texts of its header.

    Raises:
        OSError: If it cannot be written.
        ValueError: If a value has another shape or dtype than was said.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    place = 0
    names = in_order(sizes)
    for name in names:
        size = sizes[name]
        end = place + size.shape.numel() * size.dtype.itemsize
        entries[name] = {
            "dtype": _CODES[size.dtype],
            "shape": list(size.shape),
            "data_offsets": [place, end],
        }
        place = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    file.write(struct.pack("<Q", len(header)) + header)
    for name, value in zip(names, values, strict=True):
        if value.shape != sizes[name].shape or value.dtype != sizes[name].dtype:
            raise ValueError(
                f"{name}: {tuple(value.shape)} {value.dtype}, expected "
                f"{tuple(sizes[name].shape)} {sizes[name].dtype}."
            )
        numbers = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        file.write(numbers.data)
