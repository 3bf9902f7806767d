"""Checkpoints of other programs, made from a random EoMT of transformers.

The tables here are written from the published key lists of those programs and share nothing with
the package's own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.models.hf_eomt import make_oracle

# Two heads of 64 channels, as all public models have.
TINY: dict[str, Any] = {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 3}
MEAN, STD = (0.43, 0.411, 0.296), (0.213, 0.156, 0.143)
CLASSES = {4: "road", 0: "sky", 300: "tree", 7: "car", 2: "dog", 1: "cat"}


def oracle_of(
    family: str, *, gated: bool = False, silu_heads: bool = False, **sizes: Any
) -> nn.Module:
    """A random EoMT of transformers in eval mode, with attention unmasked as after training.

    With `silu_heads` a gated DINOv3 is as transformers has it, else as its authors do.
    """
    changes: dict[str, Any] = {**TINY, **sizes}
    if family == "dinov2":
        changes["use_swiglu_ffn"] = gated
    else:
        changes.setdefault("intermediate_size", 4 * changes["hidden_size"])
        changes.update(use_gated_mlp=gated, hidden_act="silu" if gated else "gelu")
    oracle: Any = make_oracle(family, **changes)
    if family == "dinov3" and gated and not silu_heads:
        # EoMT's heads have GELU; only the gates have SiLU.
        oracle.mask_head.activation = nn.GELU()
        for block in oracle.upscale_block.block:
            block.activation = nn.GELU()
    _condition(oracle)
    oracle.attn_mask_probs.zero_()
    return oracle.eval()


def _condition(oracle: nn.Module) -> None:
    """Matrices that keep the scale of what they multiply, at any width.

    Larger ones make attention choose single tokens, and differences of rounding then grow from
    block to block until nothing can be compared.
    """
    with torch.no_grad():
        for name, value in oracle.named_parameters():
            if "token" in name or "query" in name or "position" in name:
                value.normal_(std=0.5)
            elif value.ndim > 1:
                value.normal_(std=value[0].numel() ** -0.5)


def timm_style(oracle: nn.Module) -> dict[str, Tensor]:
    """The encoder of a DINOv2 oracle as timm and the official code name it."""
    theirs = oracle.state_dict()
    ours = {
        "cls_token": theirs["embeddings.cls_token"],
        "reg_token": theirs["embeddings.register_tokens"],
        "pos_embed": theirs["embeddings.position_embeddings.weight"][None],
        "patch_embed.proj.weight": theirs["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": theirs["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": theirs["layernorm.weight"],
        "norm.bias": theirs["layernorm.bias"],
    }
    for i in range(oracle.config.num_hidden_layers):
        s, t = f"layers.{i}.", f"blocks.{i}."
        for kind in ("weight", "bias"):
            ours[f"{t}norm1.{kind}"] = theirs[f"{s}norm1.{kind}"]
            ours[f"{t}norm2.{kind}"] = theirs[f"{s}norm2.{kind}"]
            ours[f"{t}attn.qkv.{kind}"] = torch.cat(
                [theirs[f"{s}attention.{x}_proj.{kind}"] for x in "qkv"]
            )
            ours[f"{t}attn.proj.{kind}"] = theirs[f"{s}attention.out_proj.{kind}"]
            if oracle.config.use_swiglu_ffn:
                gate_up = [theirs[f"{s}mlp.{x}_proj.{kind}"] for x in ("gate", "up")]
                ours[f"{t}mlp.fc1.{kind}"] = torch.cat(gate_up)
                ours[f"{t}mlp.fc2.{kind}"] = theirs[f"{s}mlp.down_proj.{kind}"]
            else:
                ours[f"{t}mlp.fc1.{kind}"] = theirs[f"{s}mlp.fc1.{kind}"]
                ours[f"{t}mlp.fc2.{kind}"] = theirs[f"{s}mlp.fc2.{kind}"]
        ours[f"{t}ls1.gamma"] = theirs[f"{s}layer_scale1.lambda1"]
        ours[f"{t}ls2.gamma"] = theirs[f"{s}layer_scale2.lambda1"]
    return {name: value.clone() for name, value in ours.items()}


def meta_style(oracle: nn.Module) -> dict[str, Tensor]:
    """The encoder as Meta (and LightlyTrain) name it, with all that such files hold beside."""
    channels = oracle.config.hidden_size
    if oracle.config.model_type == "eomt":
        weights = timm_style(oracle)
        position = torch.randn(1, 1, channels)  # of the cls token
        weights["register_tokens"] = weights.pop("reg_token")
        weights["cls_token"] = weights["cls_token"] - position
        weights["pos_embed"] = torch.cat((position, weights["pos_embed"]), 1)
        if oracle.config.use_swiglu_ffn:
            weights = {
                n.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): v
                for n, v in weights.items()
            }
        return {"mask_token": torch.randn(1, channels), **weights}
    theirs = oracle.state_dict()
    quarter = channels // oracle.config.num_attention_heads // 4
    weights = {
        "cls_token": theirs["embeddings.cls_token"],
        "storage_tokens": theirs["embeddings.register_tokens"],
        "mask_token": torch.randn(1, channels),
        "rope_embed.periods": 100.0 ** (torch.arange(quarter) / quarter),
        "patch_embed.proj.weight": theirs["embeddings.patch_embeddings.weight"],
        "patch_embed.proj.bias": theirs["embeddings.patch_embeddings.bias"],
        "norm.weight": theirs["layernorm.weight"],
        "norm.bias": theirs["layernorm.bias"],
    }
    gated = oracle.config.use_gated_mlp
    mlp = {"w1": "gate_proj", "w2": "up_proj", "w3": "down_proj"}
    mlp = mlp if gated else {"fc1": "up_proj", "fc2": "down_proj"}
    for i in range(oracle.config.num_hidden_layers):
        s, t = f"layers.{i}.", f"blocks.{i}."
        attention = f"{s}attention."
        weights[f"{t}attn.qkv.weight"] = torch.cat(
            [theirs[f"{attention}{x}_proj.weight"] for x in "qkv"]
        )
        q, v = theirs[f"{attention}q_proj.bias"], theirs[f"{attention}v_proj.bias"]
        # The middle is masked: whatever stands there must not matter.
        weights[f"{t}attn.qkv.bias"] = torch.cat((q, torch.randn_like(q), v))
        one = torch.ones(channels)
        weights[f"{t}attn.qkv.bias_mask"] = torch.cat((one, 0 * one, one))
        for kind in ("weight", "bias"):
            weights[f"{t}norm1.{kind}"] = theirs[f"{s}norm1.{kind}"]
            weights[f"{t}norm2.{kind}"] = theirs[f"{s}norm2.{kind}"]
            weights[f"{t}attn.proj.{kind}"] = theirs[f"{attention}o_proj.{kind}"]
            for target, source in mlp.items():
                weights[f"{t}mlp.{target}.{kind}"] = theirs[f"{s}mlp.{source}.{kind}"]
        weights[f"{t}ls1.gamma"] = theirs[f"{s}layer_scale1.lambda1"]
        weights[f"{t}ls2.gamma"] = theirs[f"{s}layer_scale2.lambda1"]
    return {name: value.clone() for name, value in weights.items()}


def hf_backbone(oracle: nn.Module) -> nn.Module:
    """The encoder of a DINOv3 oracle as transformers' own backbone."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    names = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size",
             "num_register_tokens", "patch_size", "hidden_act", "use_gated_mlp",
             "layer_norm_eps")  # fmt: skip
    config = DINOv3ViTConfig(**{name: getattr(oracle.config, name) for name in names})
    model = DINOv3ViTModel(config)
    weights = {"embeddings.mask_token": torch.zeros(1, 1, oracle.config.hidden_size)}
    for name, value in oracle.state_dict().items():
        if name.startswith(("embeddings.", "layers.", "layernorm.")):
            name = name.replace("layers.", "model.layer.").replace("layernorm.", "norm.")
            weights[name] = value
    model.load_state_dict(weights, strict=True)
    return model.eval()


def heads(oracle: nn.Module, *, query: str) -> dict[str, Tensor]:
    """Queries and heads as the official code (``query='q'``) and LightlyTrain name them."""
    theirs = oracle.state_dict()
    weights = {f"{query}.weight": theirs["query.weight"]}
    for kind in ("weight", "bias"):
        weights[f"class_head.{kind}"] = theirs[f"class_predictor.{kind}"]
        for i in range(3):
            weights[f"mask_head.{2 * i}.{kind}"] = theirs[f"mask_head.fc{i + 1}.{kind}"]
        for i in range(oracle.config.num_upscale_blocks):
            block = f"upscale_block.block.{i}"
            weights[f"upscale.{i}.conv1.{kind}"] = theirs[f"{block}.conv1.{kind}"]
            weights[f"upscale.{i}.norm.{kind}"] = theirs[f"{block}.layernorm2d.{kind}"]
            weights[f"upscale.{i}.conv2.weight"] = theirs[f"{block}.conv2.weight"]
    return {name: value.clone() for name, value in weights.items()}


def official(oracle: nn.Module) -> dict[str, Tensor]:
    """All of an official file. DINOv3 encoders have transformers' names, altered a little."""
    if oracle.config.model_type == "eomt":
        encoder = timm_style(oracle)
    else:
        encoder = official_dinov3_encoder(oracle)
    classes = oracle.config.num_labels
    return {
        "network.attn_mask_probs": torch.zeros(oracle.config.num_blocks),
        "network.encoder.pixel_mean": torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1),
        "network.encoder.pixel_std": torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1),
        **{f"network.encoder.backbone.{name}": value for name, value in encoder.items()},
        **{f"network.{name}": value for name, value in heads(oracle, query="q").items()},
        "criterion.empty_weight": torch.ones(classes + 1),
    }


def official_dinov3_encoder(oracle: nn.Module) -> dict[str, Tensor]:
    encoder = {}
    for name, value in oracle.state_dict().items():
        if name.startswith("embeddings."):
            encoder["patch_embed." + name.removeprefix("embeddings.")] = value.clone()
        elif name.startswith("layers."):
            encoder["blocks." + name.removeprefix("layers.")] = value.clone()
        elif name.startswith("layernorm."):
            encoder["norm." + name.removeprefix("layernorm.")] = value.clone()
    return encoder


def lightly(oracle: nn.Module, **settings: Any) -> dict[str, Any]:
    """Content of an ``exported_*.pt`` of LightlyTrain."""
    number = 2 if oracle.config.model_type == "eomt" else 3
    count = oracle.config.num_labels
    classes = CLASSES if count == len(CLASSES) else {i + 1: f"thing {i}" for i in range(count)}
    weights = {
        **{f"backbone.{name}": value for name, value in meta_style(oracle).items()},
        **heads(oracle, query="queries"),
    }
    return {
        "model_class_path": f"lightly_train._task_models.dinov{number}_eomt_semantic_segmentation"
        f".task_model.DINOv{number}EoMTSemanticSegmentation",
        "model_init_args": {
            "model_name": f"dinov{number}/some",
            "classes": dict(classes),
            "class_ignore_index": -100,
            "image_size": (oracle.config.image_size, oracle.config.image_size),
            "image_normalize": {"mean": MEAN, "std": STD},
            "num_queries": oracle.config.num_queries,
            "num_joint_blocks": oracle.config.num_blocks,
            "backbone_freeze": False,
            "backbone_args": {},
            **settings,
        },
        "train_model": {
            **{f"model.{name}": value for name, value in weights.items()},
            "criterion.empty_weight": torch.ones(count + 1),
        },
        "license_info": "text",
    }


def save_hf_4x(oracle: nn.Module, folder: Path) -> None:
    """A folder as transformers 4.x wrote it: gated DINOv2 has packed gates under other names."""
    oracle.save_pretrained(folder)
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    for name in [n for n in weights if ".mlp.gate_proj." in n]:
        up, down = name.replace("gate", "up"), name.replace("gate", "down")
        packed = torch.cat((weights.pop(name), weights.pop(up)))
        weights[name.replace("gate_proj", "weights_in")] = packed
        weights[down.replace("down_proj", "weights_out")] = weights.pop(down)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["transformers_version"] = "4.57.3"
    (folder / "config.json").write_text(json.dumps(config))


def picture(size: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """A random image, wider than high."""
    shape = (size, size * 2 + size // 3, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def oracle_labels(
    oracle: nn.Module, image: NDArray[np.uint8], *, mean: Any = None, std: Any = None
) -> Tensor:
    """Class indices ``[H, W]`` by transformers' own processor, windows and post-processing."""
    from transformers import EomtImageProcessorPil

    size = {"shortest_edge": oracle.config.image_size, "longest_edge": None}
    options = {} if mean is None else {"image_mean": list(mean), "image_std": list(std)}
    processor = EomtImageProcessorPil(size=size, do_split_image=True, **options)
    batch = processor(images=image, return_tensors="pt")
    with torch.no_grad():
        outputs = oracle(**batch)
    labels: Tensor = processor.post_process_semantic_segmentation(
        outputs, target_sizes=[image.shape[:2]], size=size
    )[0]
    return labels
