"""transformers' EoMT as an oracle: small models, and their weights under our names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmseg_eomt.models.eomt_segmentor import EoMTSegmentor

HEAD = {"query": "query", "class_head": "class_predictor"}
NUM_CLASSES, NUM_QUERIES, POINTS = 6, 7, 128
DIMS, DEPTH, HEADS, JOINT, SIZE = 32, 4, 4, 2, 64


def make_oracle(family: str, *, seed: int = 0, **overrides: Any) -> nn.Module:
    """A random EoMT of transformers, every parameter away from its neutral value."""
    from transformers import (
        EomtConfig,
        EomtDinov3Config,
        EomtDinov3ForUniversalSegmentation,
        EomtForUniversalSegmentation,
    )

    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "hidden_size": DIMS,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "image_size": SIZE,
        "patch_size": 16,
        "num_queries": NUM_QUERIES,
        "num_blocks": JOINT,
        "num_labels": NUM_CLASSES,
        "num_register_tokens": 4,
        "train_num_points": POINTS,
        "no_object_weight": 0.1,
    }
    if family == "dinov2":
        oracle = EomtForUniversalSegmentation(EomtConfig(**{**settings, **overrides}))
    else:
        # Released checkpoints have eps 1e-5, and training moves coordinates only if asked to.
        settings.update(layer_norm_eps=1e-5, pos_embed_rescale=None, intermediate_size=4 * DIMS)
        oracle = EomtDinov3ForUniversalSegmentation(EomtDinov3Config(**{**settings, **overrides}))
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return oracle.eval()


def make_ours(family: str, **head: Any) -> EoMTSegmentor:
    """Our model of the same shape."""
    arch = {"embed_dims": DIMS, "depth": DEPTH, "num_heads": HEADS, "patch_size": 16}
    return EoMTSegmentor(
        backbone={
            "type": "DINOv2" if family == "dinov2" else "DINOv3",
            "arch": arch,
            "image_size": SIZE,
            "num_joint_blocks": JOINT,
        },
        decode_head={
            "type": "EoMTHead",
            "num_classes": NUM_CLASSES,
            "num_queries": NUM_QUERIES,
            "loss_decode": {"type": "MaskClassificationLoss", "num_points": POINTS},
            **head,
        },
    )


def our_weights(family: str, oracle: nn.Module) -> dict[str, Tensor]:
    """The oracle's weights under our names (layouts of ``facts/eomt.md`` section 4)."""
    theirs = oracle.state_dict()
    ours: dict[str, Tensor] = {}

    def take(target: str, source: str) -> None:
        for kind in ("weight", "bias"):
            if f"{source}.{kind}" in theirs:
                ours[f"{target}.{kind}"] = theirs[f"{source}.{kind}"]

    vit = "backbone.vit"
    ours[f"{vit}.cls_token"] = theirs["embeddings.cls_token"]
    ours[f"{vit}.reg_token"] = theirs["embeddings.register_tokens"]
    patches = "embeddings.patch_embeddings"
    take(f"{vit}.patch_embed.proj", f"{patches}.projection" if family == "dinov2" else patches)
    if family == "dinov2":
        ours[f"{vit}.pos_embed"] = theirs["embeddings.position_embeddings.weight"][None]
    take(f"{vit}.norm", "layernorm")
    for index in range(DEPTH):
        source, target = f"layers.{index}", f"{vit}.blocks.{index}"
        for norm in ("norm1", "norm2"):
            take(f"{target}.{norm}", f"{source}.{norm}")
        attention = f"{source}.attention"
        names = ("q_proj", "k_proj", "v_proj")
        ours[f"{target}.attn.qkv.weight"] = torch.cat(
            [theirs[f"{attention}.{name}.weight"] for name in names]
        )
        if family == "dinov2":
            ours[f"{target}.attn.qkv.bias"] = torch.cat(
                [theirs[f"{attention}.{name}.bias"] for name in names]
            )
            take(f"{target}.attn.proj", f"{attention}.out_proj")
            take(f"{target}.mlp.fc1", f"{source}.mlp.fc1")
            take(f"{target}.mlp.fc2", f"{source}.mlp.fc2")
        else:
            ours[f"{target}.attn.q_bias"] = theirs[f"{attention}.q_proj.bias"]
            ours[f"{target}.attn.v_bias"] = theirs[f"{attention}.v_proj.bias"]
            take(f"{target}.attn.proj", f"{attention}.o_proj")
            take(f"{target}.mlp.fc1", f"{source}.mlp.up_proj")
            take(f"{target}.mlp.fc2", f"{source}.mlp.down_proj")
        for number in (1, 2):
            name = f"ls{number}.gamma" if family == "dinov2" else f"gamma_{number}"
            ours[f"{target}.{name}"] = theirs[f"{source}.layer_scale{number}.lambda1"]
    for target, source in HEAD.items():
        take(f"decode_head.{target}", source)
    for index in range(3):
        take(f"decode_head.mask_head.{2 * index}", f"mask_head.fc{index + 1}")
    for index in range(2):
        source, target = f"upscale_block.block.{index}", f"decode_head.upscale.{index}"
        take(f"{target}.conv1", f"{source}.conv1")
        take(f"{target}.conv2", f"{source}.conv2")
        take(f"{target}.norm", f"{source}.layernorm2d")
    return ours


def make_pair(family: str, **head: Any) -> tuple[EoMTSegmentor, nn.Module]:
    """Ours and the oracle with the same weights."""
    oracle = make_oracle(family)
    ours = make_ours(family, **head)
    ours.load_state_dict(our_weights(family, oracle), strict=True)
    return ours.eval(), oracle
