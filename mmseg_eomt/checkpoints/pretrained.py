"""Pretrained weights of a backbone: found, read, converted and loaded strictly."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from torch import Tensor

from mmseg_eomt.checkpoints.channels import fit_channels
from mmseg_eomt.checkpoints.download import fetch_hub, fetch_url, is_url
from mmseg_eomt.checkpoints.hf import convert_hf, is_hf_layout
from mmseg_eomt.checkpoints.meta import convert_meta, is_meta_layout
from mmseg_eomt.checkpoints.shards import like_shard
from mmseg_eomt.checkpoints.sources import read_weights
from mmseg_eomt.checkpoints.timm import (
    convert_timm,
    expected_sizes,
    is_timm_layout,
    registered_source,
)

_KERNEL = "patch_embed.proj.weight"
_SHOWN = 12  # keys listed one by one in an error


def load_pretrained(vit: Any, source: str, *, hub_name: str | None = None) -> None:
    """Loads weights into a timm module, every one of them.

    In a distributed run rank 0 downloads first and the others read what it left.

    Args:
        vit (VisionTransformer | Eva): The module to fill.
        source (str): A file or folder, a URL (see :func:`fetch_url`), ``'timm'``,
            ``'timm/<name>'`` or ``'hf-hub:<repository>'``.
        hub_name (str, optional): timm's name that ``'timm'`` stands for. Defaults to None.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it cannot be fetched or read, or does not fit; with what is missing,
            unexpected or of another shape.
        OSError: If a download fails.
    """
    path = locate(source, hub_name=hub_name)
    load_strictly(vit, convert_weights(read_weights(path), vit, origin=str(path)), str(path))


def locate(source: str, *, hub_name: str | None = None) -> Path:
    """Turns what a user calls weights into a file or folder on this machine.

    Args and raises: as :func:`load_pretrained`.

    Returns:
        Path: File or folder.
    """
    if is_url(source):
        return fetch_url(source)
    if source.startswith("hf-hub:"):
        return fetch_hub(source.removeprefix("hf-hub:"))
    if source == "timm" or (source.startswith("timm/") and not Path(source).exists()):
        name = hub_name if source == "timm" else source.removeprefix("timm/")
        if name is None:
            raise ValueError(
                "pretrained='timm': timm's hub has no weights of this architecture. Give the "
                "path or URL of a file instead (for DINOv3, Meta sends links on request)."
            )
        repository, url = registered_source(name)
        if repository is not None:
            return fetch_hub(repository)
        assert url is not None
        return fetch_url(url)
    return Path(source).expanduser()


def convert_weights(weights: dict[str, Tensor], vit: Any, *, origin: str) -> dict[str, Tensor]:
    """Turns weights in any known layout into those of ``vit``.

    Layouts: ours (the module under ``vit.`` or ``backbone.vit.``; a head beside it is left out),
    Meta's, timm's and transformers'. They are told apart by their names.

    Args:
        weights (dict[str, Tensor]): As read from a file.
        vit (VisionTransformer | Eva): The module to fit; kernel and position table are resampled
            to its patch size and grid, and kernels to its input channels (:func:`fit_channels`;
            the log says so).
        origin (str): Named in errors.

    Returns:
        dict[str, Tensor]: timm's names.

    Raises:
        ValueError: If the layout is unknown, or the file is of another architecture.
    """
    weights = _ours(weights)
    if is_hf_layout(weights):
        weights = convert_hf(weights)
    elif not (is_meta_layout(weights) or is_timm_layout(weights)):
        raise ValueError(
            f"{origin!r} has none of the known layouts (Meta's, timm's or transformers' DINOv2 or "
            f"DINOv3, or mmseg_eomt's own). Its first names: {', '.join(list(weights)[:8])}."
        )
    weights = _with_channels(weights, vit, origin)
    _check_architecture(weights, vit, origin)
    if is_meta_layout(weights):
        return convert_meta(weights, vit)
    return convert_timm(weights, vit)


def load_strictly(vit: Any, weights: dict[str, Tensor], origin: str) -> None:
    """Loads ``weights`` into ``vit`` if they are exactly its own, else raises a ``ValueError``."""
    expected = expected_sizes(vit)
    missing = [name for name in expected if name not in weights]
    unexpected = [name for name in weights if name not in expected]
    shapes = [
        f"{name} {tuple(weights[name].shape)}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in weights and weights[name].shape != shape
    ]
    if missing or unexpected or shapes:
        raise ValueError(
            f"The weights in {origin!r} do not fit the backbone.\n"
            f"  missing: {_listed(missing)}\n"
            f"  unexpected: {_listed(unexpected)}\n"
            f"  of another shape: {_listed(shapes)}\n"
            "Choose the architecture (arch, registers, in_channels) that the file was made for, "
            "or another file."
        )
    own = vit.state_dict()
    vit.load_state_dict({n: like_shard(value, own[n]) for n, value in weights.items()}, strict=True)


def _ours(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Picks the timm module out of a model, or backbone, of this package."""
    for prefix in ("backbone.vit.", "vit.", "backbone."):
        picked = {n[len(prefix) :]: v for n, v in weights.items() if n.startswith(prefix)}
        rest = [n for n in weights if not n.startswith((prefix, "decode_head."))]
        if picked and not rest:
            return picked
    return weights


def _with_channels(weights: dict[str, Tensor], vit: Any, origin: str) -> dict[str, Tensor]:
    kernel, wanted = weights.get(_KERNEL), vit.patch_embed.proj.in_channels
    if kernel is None or kernel.ndim != 4 or kernel.shape[1] == wanted:
        return weights
    fitted, done = fit_channels(kernel.float(), wanted)
    print_log(
        f"{origin}: made for images of {kernel.shape[1]} channels (red, green, blue first), used "
        f"for {wanted}: {done}.",
        logger="current",
    )
    return {**weights, _KERNEL: fitted}


def _check_architecture(weights: dict[str, Tensor], vit: Any, origin: str) -> None:
    """Compares what can be seen of the size at once, for an error that says what is wrong."""
    target = vit.state_dict()
    found, expected = _sizes(weights), _sizes(target)
    wrong = [
        f"{what} {found[what]}, expected {expected[what]}"
        for what in expected
        if found[what] is not None and found[what] != expected[what]
    ]
    if wrong:
        raise ValueError(
            f"The weights in {origin!r} are of another architecture than the backbone: "
            f"{'; '.join(wrong)}. Choose the arch that the file was made for, or another file."
        )


def _sizes(weights: dict[str, Tensor]) -> dict[str, object]:
    blocks = [int(m[1]) for m in map(re.compile(r"blocks\.(\d+)\.").match, weights) if m]
    registers = [
        weights[n] for n in ("reg_token", "register_tokens", "storage_tokens") if n in weights
    ]
    kernel = weights.get(_KERNEL)
    gated = any(re.search(r"\.mlp\.(w12|w1|fc1_g)\.", name) for name in weights)
    fc1 = weights.get("blocks.0.mlp.fc1.weight", weights.get("blocks.0.mlp.w12.weight"))
    fc2 = weights.get("blocks.0.mlp.fc2.weight", weights.get("blocks.0.mlp.w3.weight"))
    if fc1 is not None and fc2 is not None:
        gated = fc1.shape[0] == 2 * fc2.shape[1]  # DINOv2 packs both halves
    return {
        "embed dim": None if kernel is None else kernel.shape[0],
        "depth": max(blocks, default=-1) + 1,
        "register tokens": registers[0].shape[1] if registers else 0,
        "MLP": "gated" if gated else "plain",
        "positions": "learned (DINOv2)" if "pos_embed" in weights else "rotary (DINOv3)",
    }


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "none") + more
