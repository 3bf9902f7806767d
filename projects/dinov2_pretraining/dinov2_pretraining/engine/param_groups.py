"""DINOv2's parameter groups: rates that fall from the last block to the first."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from mmseg.registry import OPTIM_WRAPPER_CONSTRUCTORS

from mmseg_eomt.engine.optimizer import OptimWrapperConstructor

BACKBONE = "student.encoder."
ROLES = ("backbone", "head", "last_layer")


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class PretrainOptimWrapperConstructor(OptimWrapperConstructor):
    """Builds the optimiser of the student with facebookresearch/dinov2's groups.

    Block i of n has the rate ``lr * layer_decay ** (n - i)``, embeddings, positions and tokens
    ``lr * layer_decay ** (n + 1)``, the patch embedding ``patch_embed_lr_mult`` times that; the
    final norm and the heads have ``lr``. Norms, biases and layer scales have no weight decay. A
    group carries ``role`` ('backbone', 'head', 'last_layer'), ``lr_scale`` and ``names``;
    ``PretrainScheduleHook`` sets rate and decay of each step.

    Args:
        optim_wrapper_cfg (dict): ``type``, ``optimizer`` (with ``lr``) and the wrapper's own keys.
        paramwise_cfg (dict, optional): ``layer_decay`` (default 0.9), ``patch_embed_lr_mult``
            (default 0.2).

    Raises:
        ValueError: If a key or value is not one of these.
    """

    def __init__(
        self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None
    ) -> None:
        options = {"layer_decay": 0.9, "patch_embed_lr_mult": 0.2}
        unknown = sorted(set(paramwise_cfg or {}) - set(options))
        if unknown:
            raise ValueError(
                f"optim_wrapper.paramwise_cfg has unknown keys {unknown}; it takes {list(options)}."
            )
        options.update(paramwise_cfg or {})
        self.layer_decay = float(options["layer_decay"])
        self.patch_embed_lr_mult = float(options["patch_embed_lr_mult"])
        if not 0.0 < self.layer_decay <= 1.0:
            raise ValueError(
                f"paramwise_cfg.layer_decay is {self.layer_decay}: it must lie in (0, 1]; "
                "1 switches layer decay off."
            )
        if self.patch_embed_lr_mult < 0.0:
            raise ValueError(
                f"paramwise_cfg.patch_embed_lr_mult is {self.patch_embed_lr_mult}: it must not be "
                "negative; 0 freezes the patch embedding."
            )
        super().__init__(optim_wrapper_cfg)

    def param_groups(self, model: Any) -> list[dict[str, Any]]:
        """Groups of the student's parameters.

        Args:
            model (DINOv2Pretraining): Not wrapped.

        Returns:
            list[dict]: Each with ``params, lr, weight_decay, role, lr_scale, names``;
            ``weight_decay`` is 1 where the schedule's decay applies and 0 where there is none.
        """
        depth = model.student.encoder.backbone.depth
        lr = float(self.optimizer_cfg["lr"])
        groups: OrderedDict[tuple[str, float, float], dict[str, Any]] = OrderedDict()
        for name, parameter in model.named_parameters():
            if not name.startswith("student."):
                continue
            role, scale = self._place(name, depth)
            decay = 0.0 if _undecayed(name) else 1.0
            group = groups.setdefault(
                (role, scale, decay),
                {
                    "params": [],
                    "lr": lr * scale,
                    "weight_decay": decay,
                    "decayed": decay,
                    "role": role,
                    "lr_scale": scale,
                    "names": [],
                },
            )
            group["params"].append(parameter)
            group["names"].append(name)
        return sorted(groups.values(), key=lambda group: (group["role"], group["lr_scale"]))

    def _place(self, name: str, depth: int) -> tuple[str, float]:
        """Role and rate factor of a parameter."""
        if not name.startswith(BACKBONE):
            return ("last_layer" if name.endswith(".last_layer") else "head"), 1.0
        parts = name.removeprefix(BACKBONE).removeprefix("backbone.vit.").split(".")
        if parts[0] == "norm":
            return "backbone", 1.0
        if parts[0] == "blocks":
            return "backbone", self.layer_decay ** (depth - int(parts[1]))
        scale = self.layer_decay ** (depth + 1)
        return "backbone", scale * (self.patch_embed_lr_mult if parts[0] == "patch_embed" else 1.0)


def _undecayed(name: str) -> bool:
    """Biases, norms and layer scales, under timm's names of both families."""
    parts = name.split(".")
    return (
        parts[-1].endswith("bias")
        or parts[-1].startswith("gamma")
        or any(part.startswith("norm") or part.endswith("_norm") for part in parts)
    )
