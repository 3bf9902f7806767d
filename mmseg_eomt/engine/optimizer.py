"""Optimiser groups by role and layer, and the fused kernels where they run."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from typing import Any

from mmengine.optim import OptimWrapper
from mmseg.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from mmseg_eomt.checkpoints.describe import unwrap


def with_fused(optimizer_cfg: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """``optimizer_cfg`` with ``fused=True`` where the optimiser and the device have it.

    A fused step is one kernel per group instead of several, and it can skip an update on the
    device, so a non-finite gradient is caught without waiting for the GPU.

    Args:
        optimizer_cfg (dict): Config of the optimiser. Its own ``fused`` or ``foreach`` wins.
        model (nn.Module): Whose parameters will be optimised.

    Returns:
        dict: A copy.
    """
    optimizer_cfg = dict(optimizer_cfg)
    if optimizer_cfg.get("fused") is not None or optimizer_cfg.get("foreach") is not None:
        return optimizer_cfg
    kind = optimizer_cfg["type"]
    optimizer_class = OPTIMIZERS.get(kind) if isinstance(kind, str) else kind
    if optimizer_class is None or "fused" not in inspect.signature(optimizer_class).parameters:
        return optimizer_cfg
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if trained and all(p.is_cuda and p.is_floating_point() for p in trained):
        optimizer_cfg["fused"] = True
    return optimizer_cfg


class OptimWrapperConstructor:
    """Builds an optimiser of :meth:`param_groups` and its wrapper.

    Args:
        optim_wrapper_cfg (dict): ``type``, ``optimizer`` (with ``lr``) and the wrapper's own keys.

    Raises:
        ValueError: If there is no optimiser with a rate.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any]) -> None:
        self.optim_wrapper_cfg = dict(optim_wrapper_cfg)
        optimizer = self.optim_wrapper_cfg.pop("optimizer", None)
        if not isinstance(optimizer, dict) or "lr" not in optimizer:
            raise ValueError(
                "optim_wrapper.optimizer must be a dict with 'type' and 'lr', for example "
                f"dict(type='AdamW', lr=1e-4, weight_decay=0.05); found {optimizer!r}."
            )
        self.optimizer_cfg = dict(optimizer)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """The optimiser wrapper of ``model``, which may be wrapped for distributed training.

        Raises:
            ValueError: If the groups cannot be made.
        """
        inner: Any = unwrap(model)
        optimizer_cfg = with_fused(self.optimizer_cfg, inner)
        optimizer_cfg["params"] = self.param_groups(inner)
        optimizer = OPTIMIZERS.build(optimizer_cfg)
        wrapper_cfg = {"type": "MixedPrecisionOptimWrapper", **self.optim_wrapper_cfg}
        return OPTIM_WRAPPERS.build(wrapper_cfg, default_args={"optimizer": optimizer})

    def param_groups(self, model: Any) -> list[dict[str, Any]]:
        """The parameter groups of a model that is not wrapped."""
        raise NotImplementedError


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
