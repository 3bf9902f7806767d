"""Sizes of the DINOv2 and DINOv3 vision transformers, and how many blocks EoMT joins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

GATED_ALIGNMENT = 8  # Both families round the width of a gated MLP up to a multiple of 8.


@dataclass(frozen=True)
class Architecture:
    """One vision transformer.

    Attributes:
        family (str): ``'dinov2'`` or ``'dinov3'``.
        embed_dims (int): C.
        depth (int): Number of blocks.
        num_heads (int): Attention heads.
        patch_size (int): Native patch side in pixels.
        mlp_dims (int): Hidden width of the MLP; of each of its two halves if it is gated.
        gated_mlp (bool): SwiGLU instead of GELU.
        num_registers (int): Register tokens beside the cls token.
        num_joint_blocks (int): Last blocks that EoMT runs on queries and patches together.
        init_values (float | None): Layer scale at initialisation. None: see
            :meth:`layer_scale`.
        timm_name (str | None): timm's model of these sizes. None where timm has none.
        timm_tag (str | None): Tag of the released weights on the timm hub. None: not there.
    """

    family: str
    embed_dims: int
    depth: int
    num_heads: int
    patch_size: int
    mlp_dims: int
    gated_mlp: bool = False
    num_registers: int = 4
    num_joint_blocks: int = 3
    init_values: float | None = None
    timm_name: str | None = None
    timm_tag: str | None = None

    def layer_scale(self, pretrained: str | None) -> float:
        """Layer scale at initialisation: as given, else 1e-5 where weights are loaded, else 1.

        1e-5 is the value that DINOv2 and DINOv3 start their long pretraining from (Meta's public
        configs). A short training from scratch has no time to grow it, so there each block acts
        in full from the start.
        """
        if self.init_values is not None:
            return self.init_values
        return 1.0 if pretrained is None else 1e-5

    @property
    def hub_name(self) -> str | None:
        """``timm_name.timm_tag``, or None without released weights on the timm hub."""
        if self.timm_name is None or self.timm_tag is None:
            return None
        return f"{self.timm_name}.{self.timm_tag}"


def default_num_joint_blocks(depth: int) -> int:
    """Joint blocks by size: 3 for S and B, 4 for L, 5 above (EoMT, arXiv 2503.19108, 4.1)."""
    if depth <= 12:
        return 3
    return 4 if depth <= 24 else 5


def _dinov2(size: str, dims: int, depth: int, heads: int, mlp: int, gated: bool) -> Architecture:
    return Architecture(
        family="dinov2",
        embed_dims=dims,
        depth=depth,
        num_heads=heads,
        patch_size=14,
        mlp_dims=mlp,
        gated_mlp=gated,
        num_joint_blocks=default_num_joint_blocks(depth),
        timm_name=f"vit_{size}_patch14_reg4_dinov2",
        timm_tag="lvd142m",
    )


def _dinov3(
    size: str | None, dims: int, depth: int, heads: int, mlp: int, gated: bool
) -> Architecture:
    return Architecture(
        family="dinov3",
        embed_dims=dims,
        depth=depth,
        num_heads=heads,
        patch_size=16,
        mlp_dims=mlp,
        gated_mlp=gated,
        num_joint_blocks=default_num_joint_blocks(depth),
        # The `_qkvb` twins keep q and v biases: zero as released, moved by fine-tuning.
        timm_name=None if size is None else f"vit_{size}_patch16_dinov3_qkvb",
        timm_tag=None if size is None else "lvd1689m",
    )


def _without_registers(arch: Architecture) -> Architecture:
    assert arch.timm_name is not None
    return replace(arch, num_registers=0, timm_name=arch.timm_name.replace("_reg4", ""))


# Widths of gated MLPs: two thirds of Meta's `ffn_ratio * C` (6 for vits16plus, vitl16plus and
# vith16plus, 3 for vit7b16), as in facebookresearch/dinov3, and 4096 for vitg14 of dinov2.
ARCHITECTURES: dict[str, Architecture] = {
    "dinov2/vits14": _dinov2("small", 384, 12, 6, 1536, False),
    "dinov2/vitb14": _dinov2("base", 768, 12, 12, 3072, False),
    "dinov2/vitl14": _dinov2("large", 1024, 24, 16, 4096, False),
    "dinov2/vitg14": _dinov2("giant", 1536, 40, 24, 4096, True),
    "dinov3/vits16": _dinov3("small", 384, 12, 6, 1536, False),
    "dinov3/vits16plus": _dinov3("small_plus", 384, 12, 6, 1536, True),
    "dinov3/vitb16": _dinov3("base", 768, 12, 12, 3072, False),
    "dinov3/vitl16": _dinov3("large", 1024, 24, 16, 4096, False),
    # In Meta's hub code, without a public download; timm does not have it.
    "dinov3/vitl16plus": _dinov3(None, 1024, 24, 16, 4096, True),
    "dinov3/vith16plus": _dinov3("huge_plus", 1280, 32, 20, 5120, True),
    # timm has this one without q and v biases only; its weights load with the biases at zero.
    "dinov3/vit7b16": replace(
        _dinov3("7b", 4096, 40, 32, 8192, True), timm_name="vit_7b_patch16_dinov3"
    ),
}
ARCHITECTURES.update(
    {
        f"{name}-noreg": _without_registers(arch)
        for name, arch in list(ARCHITECTURES.items())
        if arch.family == "dinov2"
    }
)

_REQUIRED = ("embed_dims", "depth", "num_heads", "patch_size")
_OPTIONAL = ("mlp_ratio", "num_registers", "gated_mlp", "init_values")


def resolve_architecture(family: str, arch: str | Mapping[str, Any]) -> Architecture:
    """Finds an architecture by name, or makes one from sizes.

    Args:
        family (str): ``'dinov2'`` or ``'dinov3'``.
        arch (str | Mapping): A name such as ``'vits16'``, or a dict with ``embed_dims``,
            ``depth``, ``num_heads``, ``patch_size`` and optionally ``mlp_ratio`` (hidden width of
            the MLP, or of each half of a gated one, over ``embed_dims``; 4), ``num_registers``
            (4), ``gated_mlp`` (False) and ``init_values`` (layer scale, see
            :meth:`Architecture.layer_scale`).

    Returns:
        Architecture: The sizes.

    Raises:
        ValueError: If the name is unknown, or a size is missing, unknown or unfit.
    """
    if isinstance(arch, str):
        found = ARCHITECTURES.get(f"{family}/{arch}")
        if found is None:
            names = [n.split("/")[1] for n in ARCHITECTURES if n.startswith(f"{family}/")]
            raise ValueError(
                f"Unknown {family} architecture {arch!r}. Choose one of {', '.join(names)}, or "
                f"give the sizes as a dict with {', '.join(_REQUIRED)}."
            )
        return found
    missing = [key for key in _REQUIRED if key not in arch]
    unknown = [key for key in arch if key not in _REQUIRED + _OPTIONAL]
    if missing or unknown:
        raise ValueError(
            f"The {family} architecture {dict(arch)!r} lacks {missing or 'nothing'} and has the "
            f"unknown keys {unknown or 'none'}. Required: {', '.join(_REQUIRED)}; optional: "
            f"{', '.join(_OPTIONAL)}."
        )
    dims, heads, depth = arch["embed_dims"], arch["num_heads"], arch["depth"]
    # Rotary positions split a head's channels in four: sine, cosine, rows, columns.
    divisor = heads * 4 if family == "dinov3" else heads
    if dims % divisor:
        raise ValueError(
            f"embed_dims={dims} of the {family} architecture is no multiple of {divisor} "
            f"(num_heads={heads}{', times 4 for rotary positions' if divisor != heads else ''})."
        )
    gated = bool(arch.get("gated_mlp", False))
    mlp_dims = int(dims * arch.get("mlp_ratio", 4))
    if gated:
        mlp_dims += -mlp_dims % GATED_ALIGNMENT
    return Architecture(
        family=family,
        embed_dims=dims,
        depth=depth,
        num_heads=heads,
        patch_size=arch["patch_size"],
        mlp_dims=mlp_dims,
        gated_mlp=gated,
        num_registers=arch.get("num_registers", 4),
        num_joint_blocks=min(default_num_joint_blocks(depth), depth),
        init_values=arch.get("init_values"),
    )
