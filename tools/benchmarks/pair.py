"""Our model and transformers' EoMT of any size with the same weights, and what a pass costs.

Shape legend: N patches, T tokens, Q queries, K classes, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from common import import_models
from torch import Tensor, nn

from mmseg_eomt.models.architectures import Architecture, resolve_architecture

TINY = {"embed_dims": 32, "depth": 4, "num_heads": 4, "patch_size": 16}


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and its input.

    Attributes:
        family (str): 'dinov2' or 'dinov3'.
        arch (str): Name of the architecture, or 'tiny'.
        size (int): Side of the image in pixels.
        queries (int): Q.
        classes (int): K.
        points (int): Points of the loss.
        patch_size (int): 16, to which DINOv2's kernel is resampled as in the official recipe.
    """

    family: str
    arch: str
    size: int = 512
    queries: int = 100
    classes: int = 150
    points: int = 12544
    patch_size: int = 16

    @property
    def sizes(self) -> Architecture:
        """Width, depth and so on."""
        return resolve_architecture(self.family, TINY if self.arch == "tiny" else self.arch)

    @classmethod
    def parse(cls, name: str, **sizes: int) -> Shape:
        """``'dinov3/vits16'`` with the given sizes."""
        family, _, arch = name.partition("/")
        shape = cls(family, arch, **sizes)
        if shape.sizes.gated_mlp:
            # transformers then takes the gate's activation for mask head and upscaling too.
            raise ValueError(f"{name} has a gated MLP, for which the reference is another model.")
        return shape


def make_reference(shape: Shape) -> nn.Module:
    """transformers' EoMT with SDPA, random weights, no mask annealed."""
    from transformers import (
        EomtConfig,
        EomtDinov3Config,
        EomtDinov3ForUniversalSegmentation,
        EomtForUniversalSegmentation,
    )

    sizes = shape.sizes
    settings: dict[str, Any] = {
        "hidden_size": sizes.embed_dims,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": sizes.num_heads,
        "image_size": shape.size,
        "patch_size": shape.patch_size,
        "num_queries": shape.queries,
        "num_blocks": sizes.num_joint_blocks,
        "num_labels": shape.classes,
        "num_register_tokens": sizes.num_registers,
        "train_num_points": shape.points,
    }
    if shape.family == "dinov2":
        kind, config = EomtForUniversalSegmentation, EomtConfig(**settings)
    else:
        # Released checkpoints have eps 1e-5, and training moves coordinates only if asked to.
        settings.update(layer_norm_eps=1e-5, pos_embed_rescale=None)
        settings["intermediate_size"] = sizes.mlp_dims
        kind, config = EomtDinov3ForUniversalSegmentation, EomtDinov3Config(**settings)
    return kind._from_config(config, attn_implementation="sdpa")


def make_ours(
    shape: Shape,
    *,
    backbone: dict[str, Any] | None = None,
    decode_head: dict[str, Any] | None = None,
    **segmentor: Any,
) -> nn.Module:
    """Our model of the same sizes, with further options of its parts."""
    import_models()
    from mmseg_eomt.models.eomt_segmentor import EoMTSegmentor

    return EoMTSegmentor(
        backbone={
            "type": {"dinov2": "DINOv2", "dinov3": "DINOv3"}[shape.family],
            "arch": TINY if shape.arch == "tiny" else shape.arch,
            "image_size": shape.size,
            "patch_size": shape.patch_size,
            **(backbone or {}),
        },
        decode_head={
            "type": "EoMTHead",
            "num_classes": shape.classes,
            "num_queries": shape.queries,
            "loss_decode": {"type": "MaskClassificationLoss", "num_points": shape.points},
            **(decode_head or {}),
        },
        **segmentor,
    )


def make_pair(shape: Shape, *, device: str = "cpu", **segmentor: Any) -> tuple[Any, Any]:
    """Ours and the reference with the same weights, on ``device``, checked to agree.

    Raises:
        RuntimeError: If they do not compute the same.
    """
    torch.manual_seed(0)
    reference = make_reference(shape)
    ours = make_ours(shape, **segmentor)
    ours.load_state_dict(our_weights(shape, reference.state_dict()), strict=True)
    ours, reference = ours.to(device).eval(), reference.to(device).eval()
    reference.attn_mask_probs.zero_()
    image = torch.randn(1, 3, shape.size, shape.size, device=device)
    with torch.no_grad():
        masks, classes = ours.decode_head(ours.extract_feat(image))
        expected = reference(pixel_values=image)
    for found, wanted in (
        (masks, expected.masks_queries_logits),
        (classes, expected.class_queries_logits),
    ):
        error = (found - wanted).abs().max() / wanted.abs().max()
        if error > 1e-2:  # as much as TF32 on a GPU may bring
            raise RuntimeError(f"The two models differ by {error:.1%} with the same weights.")
    return ours, reference


def make_one(name: str, shape: Shape, *, device: str = "cpu", **segmentor: Any) -> Any:
    """One of the two alone, for memory, which the weights do not change."""
    torch.manual_seed(0)
    model = make_reference(shape) if name == "transformers" else make_ours(shape, **segmentor)
    return model.to(device)


def our_weights(shape: Shape, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reference's weights under our names."""
    ours: dict[str, Tensor] = {}
    dinov2 = shape.family == "dinov2"

    def take(target: str, source: str) -> None:
        for kind in ("weight", "bias"):
            if f"{source}.{kind}" in theirs:
                ours[f"{target}.{kind}"] = theirs[f"{source}.{kind}"]

    vit, patches = "backbone.vit", "embeddings.patch_embeddings"
    ours[f"{vit}.cls_token"] = theirs["embeddings.cls_token"]
    if shape.sizes.num_registers:
        ours[f"{vit}.reg_token"] = theirs["embeddings.register_tokens"]
    take(f"{vit}.patch_embed.proj", f"{patches}.projection" if dinov2 else patches)
    if dinov2:
        ours[f"{vit}.pos_embed"] = theirs["embeddings.position_embeddings.weight"][None]
    take(f"{vit}.norm", "layernorm")
    for index in range(shape.sizes.depth):
        source, target = f"layers.{index}", f"{vit}.blocks.{index}"
        for norm in ("norm1", "norm2"):
            take(f"{target}.{norm}", f"{source}.{norm}")
        q, k, v = (f"{source}.attention.{name}_proj" for name in "qkv")
        ours[f"{target}.attn.qkv.weight"] = torch.cat([theirs[f"{x}.weight"] for x in (q, k, v)])
        if dinov2:
            ours[f"{target}.attn.qkv.bias"] = torch.cat([theirs[f"{x}.bias"] for x in (q, k, v)])
            out, up, down = "out_proj", "fc1", "fc2"
        else:
            ours[f"{target}.attn.q_bias"] = theirs[f"{q}.bias"]
            ours[f"{target}.attn.v_bias"] = theirs[f"{v}.bias"]
            out, up, down = "o_proj", "up_proj", "down_proj"
        take(f"{target}.attn.proj", f"{source}.attention.{out}")
        take(f"{target}.mlp.fc1", f"{source}.mlp.{up}")
        take(f"{target}.mlp.fc2", f"{source}.mlp.{down}")
        for number in (1, 2):
            name = f"ls{number}.gamma" if dinov2 else f"gamma_{number}"
            ours[f"{target}.{name}"] = theirs[f"{source}.layer_scale{number}.lambda1"]
    take("decode_head.query", "query")
    take("decode_head.class_head", "class_predictor")
    for index in range(3):
        take(f"decode_head.mask_head.{2 * index}", f"mask_head.fc{index + 1}")
    for index in range(2):
        source, target = f"upscale_block.block.{index}", f"decode_head.upscale.{index}"
        take(f"{target}.conv1", f"{source}.conv1")
        take(f"{target}.conv2", f"{source}.conv2")
        take(f"{target}.norm", f"{source}.layernorm2d")
    return ours


def forward_flops(shape: Shape, *, predictions: int = 1) -> float:
    """Floating point operations of one image's forward, two per multiply-add.

    Matrix products, attention and convolutions only, as if nothing were masked or saved: what
    the model asks for, not what an implementation spends.

    Args:
        shape (Shape): The sizes.
        predictions (int): How many mask and class predictions are made. Defaults to 1.
    """
    sizes = shape.sizes
    dims, patches = sizes.embed_dims, (shape.size // shape.patch_size) ** 2
    total = patches * dims * 3 * shape.patch_size**2
    for index in range(sizes.depth):
        joint = index >= sizes.depth - sizes.num_joint_blocks
        tokens = patches + 1 + sizes.num_registers + shape.queries * joint
        total += tokens * (4 * dims**2 + 2 * dims * sizes.mlp_dims) + 2 * tokens**2 * dims
    prediction = shape.queries * (3 * dims**2 + dims * (shape.classes + 1))
    pixels = patches
    for _ in range(2):
        prediction += 4 * pixels * (dims**2 + 9 * dims)
        pixels *= 4
    prediction += shape.queries * dims * pixels
    return 2.0 * (total + predictions * prediction)
