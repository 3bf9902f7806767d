"""What constructors of optimisers share: they differ in their parameter groups alone."""

from __future__ import annotations

from typing import Any

from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmseg.registry import OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from mmseg_eomt.engine.optimizers.fused import with_fused


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
        inner: Any = model.module if is_model_wrapper(model) else model
        optimizer_cfg = with_fused(self.optimizer_cfg, inner)
        optimizer_cfg["params"] = self.param_groups(inner)
        optimizer = OPTIMIZERS.build(optimizer_cfg)
        wrapper_cfg = {"type": "MixedPrecisionOptimWrapper", **self.optim_wrapper_cfg}
        return OPTIM_WRAPPERS.build(wrapper_cfg, default_args={"optimizer": optimizer})

    def param_groups(self, model: Any) -> list[dict[str, Any]]:
        """The parameter groups of a model that is not wrapped."""
        raise NotImplementedError
