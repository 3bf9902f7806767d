"""Pretrained weights of a backbone: found, read, converted and loaded strictly."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from mmseg.registry import WEIGHT_INITIALIZERS
from safetensors.torch import save_file
from torch import Tensor

from mmseg_eomt.checkpoints.download import fetch_hub, fetch_url, is_url
from mmseg_eomt.checkpoints.foreign.foreign_model import (
    HEAD_DIMS,
    BackboneSizes,
    checked,
    infer_sizes,
)
from mmseg_eomt.checkpoints.foreign.hf import convert_hf, is_hf_layout
from mmseg_eomt.checkpoints.foreign.source_file import read_weights
from mmseg_eomt.checkpoints.foreign.timm import (
    convert_meta,
    convert_timm,
    drop_classifier,
    expected_sizes,
    is_meta_layout,
    is_timm_layout,
    registered_source,
    rename_meta,
)
from mmseg_eomt.checkpoints.sharded import like_shard
from mmseg_eomt.errors import listed

_KERNEL = "patch_embed.proj.weight"


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


@WEIGHT_INITIALIZERS.register_module()
class PretrainedViT:
    """Loads weights into a backbone's ViT, as mmengine's weight initialisers do.

    Args:
        source (str): As of :func:`load_pretrained`, and so are the errors.
        hub_name (str, optional): Likewise. Defaults to None.
    """

    def __init__(self, source: str, *, hub_name: str | None = None) -> None:
        self.source = source
        self.hub_name = hub_name

    def __call__(self, backbone: Any) -> None:
        """Fills ``backbone.vit``."""
        load_pretrained(backbone.vit, self.source, hub_name=self.hub_name)


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
            f"  missing: {listed(missing)}\n"
            f"  unexpected: {listed(unexpected)}\n"
            f"  of another shape: {listed(shapes)}\n"
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


BACKBONE_KEY = "mmseg_eomt_backbone"
"""Key of the description in the metadata of the file. It tells such a file from lean weights."""
PREFIX = "backbone.vit."


def rename_backbone(weights: Mapping[str, Tensor], *, origin: str) -> tuple[str, dict[str, Tensor]]:
    """Gives the weights of a backbone timm's names, whatever wrote them. Nothing is resampled.

    Args:
        weights: As read from a file.
        origin: Names the file in errors.

    Returns:
        Name of the layout, and weights with timm's names.

    Raises:
        ValueError: If the layout is unknown.
    """
    weights = dict(weights)
    if weights and all(name.startswith(PREFIX) for name in weights):
        return "mmseg_eomt", {name[len(PREFIX) :]: value for name, value in weights.items()}
    if is_hf_layout(weights):
        layout, renamed = "transformers", convert_hf(_without_pooling(weights))
    elif is_meta_layout(weights):
        layout, renamed = "Meta", rename_meta(weights)
    elif is_timm_layout(weights):
        layout, renamed = "timm", drop_classifier(weights)
    else:
        raise ValueError(
            f"{origin}: none of the known layouts. Allowed: DINOv2 and DINOv3 of Meta, timm or "
            "transformers; EoMT of the official code, transformers or LightlyTrain; files of "
            f"mmseg_eomt. Its first names: {', '.join(list(weights)[:8])}."
        )
    _add_zero_biases(renamed)
    return layout, renamed


def read_backbone(
    weights: Mapping[str, Tensor], *, origin: str, source_names: Mapping[int, str]
) -> tuple[str, BackboneSizes, dict[str, Tensor]]:
    """Renames and checks a backbone of DINOv2 or DINOv3.

    Returns:
        Name of the layout, sizes, and float32 weights with timm's names.

    Raises:
        ValueError: If it is none, or something is missing, left over, misshapen or not finite.
    """
    layout, renamed = rename_backbone(weights, origin=origin)
    kernel = renamed.get("patch_embed.proj.weight")
    unusual = kernel is not None and kernel.ndim and kernel.shape[0] % HEAD_DIMS != 0
    # No weight depends on the number of heads, so that of an unusual backbone need not be known.
    sizes = infer_sizes(renamed, num_heads=1 if unusual else None, origin=origin)
    expected = {name: value.shape for name, value in _empty(sizes).state_dict().items()}
    return layout, sizes, checked(renamed, expected, origin=origin, source_names=source_names)


def save_backbone(path: Path, weights: Mapping[str, Tensor], sizes: BackboneSizes) -> None:
    """Writes a checked backbone as safetensors, under our names."""
    tensors, metadata = our_layout(weights, sizes)
    save_file(tensors, path, metadata=metadata)


def our_layout(
    weights: Mapping[str, Tensor], sizes: BackboneSizes | None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors under our names and the metadata of the file, as safetensors takes them.

    Args:
        weights: timm's names.
        sizes: What the metadata say; None for a backbone that is neither DINOv2 nor DINOv3.
    """
    metadata = {"format": "pt"}
    if sizes is not None:
        described = {
            "family": sizes.family,
            "architecture": sizes.architecture if isinstance(sizes.architecture, str) else None,
            "patch_size": sizes.patch_size,
            "in_channels": sizes.in_channels,
            "image_size": sizes.grid_size,
        }
        metadata[BACKBONE_KEY] = json.dumps(described)
    return {f"{PREFIX}{name}": value for name, value in weights.items()}, metadata


def _empty(sizes: BackboneSizes) -> Any:
    """The timm module of these sizes, without storage."""
    from mmseg_eomt.models.backbones import DINOv2, DINOv3

    kind = DINOv2 if sizes.family == "dinov2" else DINOv3
    with torch.device("meta"):
        return kind(
            sizes.architecture,
            patch_size=sizes.patch_size,
            image_size=sizes.grid_size or sizes.patch_size,
            in_channels=sizes.in_channels,
        ).vit


def _without_pooling(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leaves out what transformers' classifiers and poolers add."""
    return {n: v for n, v in weights.items() if not n.startswith(("classifier.", "pooler."))}


def _add_zero_biases(weights: dict[str, Tensor]) -> None:
    """DINOv3's biases of q and v are zero as released, so some files leave them out."""
    if "pos_embed" in weights or any(name.endswith("q_bias") for name in weights):
        return
    for name in [n for n in weights if n.endswith(".attn.qkv.weight")]:
        for bias in ("q_bias", "v_bias"):
            full = name.replace("qkv.weight", bias)
            weights.setdefault(full, torch.zeros(weights[name].shape[0] // 3))
