"""Layer-wise learning rates for a ViT with a new head, in few parameter groups."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from mmseg.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from mmseg_eomt.engine.optimizers.constructor import OptimWrapperConstructor

DECAY_RULES = ("none", "usual")
# Tables of learned vectors that are added or prepended, not multiplied: they are no weights of a
# linear map, so the usual exclusion covers them next to norms and biases.
TOKEN_NAMES = ("query", "cls_token", "reg_token", "register", "storage_token", "mask_token", "pos_")


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(OptimWrapperConstructor):
    """Builds the optimiser with rates ``lr * layer_decay ** (depth - 1 - block)``.

    Embeddings have block 0's rate, the backbone's final norm and everything outside the backbone
    the full rate (EoMT, https://github.com/tue-mps/eomt; all blocks decay, the joint ones too).
    The model needs ``backbone.depth`` and ``backbone.get_block_index(name)``. Frozen parameters
    are left out. Parameters that share rate, weight decay and role share one group, so that fused
    and foreach kernels work on long lists. A group carries ``role`` ('head' or 'backbone', which
    :class:`TwoStageWarmupPolyLR` reads), ``lr_scale`` and ``names``.

    Args:
        optim_wrapper_cfg (dict): ``type``, ``optimizer`` (with ``lr``) and the wrapper's own keys.
        paramwise_cfg (dict, optional): ``layer_decay`` (float in (0, 1], default 0.8);
            ``decay_exclude``: which parameters have no weight decay, 'none' (all decay, official
            EoMT, default) or 'usual' (norms, biases, other 0- and 1-D parameters, query, class,
            register and position embeddings); ``backbone_lr_mult``: extra factor on the blocks
            before the joint blocks and on the embeddings (default 1.0).

    Raises:
        ValueError: If a key or value is not one of these.
    """

    def __init__(
        self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None
    ) -> None:
        options = {"layer_decay": 0.8, "decay_exclude": "none", "backbone_lr_mult": 1.0}
        given = dict(paramwise_cfg or {})
        unknown = sorted(set(given) - set(options))
        if unknown:
            raise ValueError(
                f"optim_wrapper.paramwise_cfg has unknown keys {unknown}; it takes {list(options)}."
            )
        options.update(given)
        self.layer_decay = float(options["layer_decay"])  # type: ignore[arg-type]
        self.decay_exclude = options["decay_exclude"]
        self.backbone_lr_mult = float(options["backbone_lr_mult"])  # type: ignore[arg-type]
        if not 0.0 < self.layer_decay <= 1.0:
            raise ValueError(
                f"paramwise_cfg.layer_decay is {self.layer_decay}: it must lie in (0, 1]; "
                "1 switches layer decay off."
            )
        if self.decay_exclude not in DECAY_RULES:
            raise ValueError(
                f"paramwise_cfg.decay_exclude is {self.decay_exclude!r}: it must be one of "
                f"{DECAY_RULES}."
            )
        if self.backbone_lr_mult < 0.0:
            raise ValueError(
                f"paramwise_cfg.backbone_lr_mult is {self.backbone_lr_mult}: it must not be "
                "negative. To freeze blocks, set backbone.frozen_blocks."
            )
        super().__init__(optim_wrapper_cfg)

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The parameter groups of ``model``, backbone first, from slow to fast.

        Args:
            model (nn.Module): The segmentor, not wrapped.

        Returns:
            list[dict]: Each with ``params, lr, weight_decay, role, lr_scale, names``.
        """
        backbone = getattr(model, "backbone", None)
        if not hasattr(backbone, "get_block_index") or not hasattr(backbone, "depth"):
            raise ValueError(
                f"{type(model).__name__}.backbone ({type(backbone).__name__}) has no depth and "
                "get_block_index(name), which layer decay needs: use DINOv2, DINOv3 or TimmViT, "
                "or another optim_wrapper.constructor."
            )
        undecayed = _undecayed_names(model) if self.decay_exclude == "usual" else set()
        lr = float(self.optimizer_cfg["lr"])
        weight_decay = float(self.optimizer_cfg.get("weight_decay", 0.0))
        groups: OrderedDict[tuple[str, float, float], dict[str, Any]] = OrderedDict()
        for name, parameter in model.named_parameters():  # shared parameters come once
            if not parameter.requires_grad:
                continue
            role, scale = self._place(name, backbone)
            decay = 0.0 if name in undecayed else weight_decay
            group = groups.setdefault(
                (role, scale, decay),
                {
                    "params": [],
                    "lr": lr * scale,
                    "weight_decay": decay,
                    "role": role,
                    "lr_scale": scale,
                    "names": [],
                },
            )
            group["params"].append(parameter)
            group["names"].append(name)
        if not groups:
            raise ValueError(
                f"{type(model).__name__} has no parameter to train: all have requires_grad=False. "
                "Check backbone.frozen_blocks."
            )
        return sorted(groups.values(), key=lambda group: (group["role"], group["lr_scale"]))

    def _place(self, name: str, backbone: Any) -> tuple[str, float]:
        """Role and rate factor of a parameter named relative to the model."""
        if not name.startswith("backbone."):
            return "head", 1.0
        inner = name[len("backbone.") :]
        try:
            block = backbone.get_block_index(inner)
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"Parameter '{name}' belongs to no block of {type(backbone).__name__}, so layer "
                "decay knows no rate for it: teach get_block_index its name."
            ) from error
        if not 0 <= block < backbone.depth:
            raise ValueError(
                f"{type(backbone).__name__}.get_block_index('{inner}') is {block}: it must lie in "
                f"0..{backbone.depth - 1}."
            )
        scale = self.layer_decay ** (backbone.depth - 1 - block)
        if block < backbone.depth - (getattr(backbone, "num_joint_blocks", None) or 0):
            scale *= self.backbone_lr_mult
        return "backbone", scale


def _undecayed_names(model: nn.Module) -> set[str]:
    """Names of parameters that 'usual' leaves without weight decay."""
    names = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            last = name.rsplit(".", 1)[-1]
            if (
                parameter.ndim <= 1
                or last == "bias"
                or isinstance(module, nn.Embedding)
                or last.startswith(TOKEN_NAMES)
            ):
                names.add(name)
    return names
