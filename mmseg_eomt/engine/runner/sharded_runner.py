"""A runner whose model may be spread over the processes of the run."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.device import get_device
from torch import nn

from mmseg_eomt.engine.optimizers import resolve_precision
from mmseg_eomt.engine.resume import ResumableRunner
from mmseg_eomt.engine.sharding.deferred import DeferredWeights, deferred_weights
from mmseg_eomt.engine.sharding.units import gather, is_sharded, scatter, shard_segmentor
from mmseg_eomt.models.eomt_segmentor import EoMTSegmentor

STRATEGIES = ("DDP", "FSDP2")


def strategy_of(cfg: Any) -> str:
    """How a config trains in several processes: 'DDP' (default) or 'FSDP2'.

    Args:
        cfg (Mapping): Of a run; ``strategy=dict(type=...)``.

    Raises:
        ValueError: If it is something else.
    """
    strategy = cfg.get("strategy") or {"type": "DDP"}
    known = isinstance(strategy, dict) and strategy.get("type") in STRATEGIES
    if not known or set(strategy) != {"type"}:
        raise ValueError(
            f"strategy is {strategy!r}: give dict(type='FSDP2') to spread weights over processes, "
            "or leave it out (dict(type='DDP')), and each process has all of them. MMEngine's own "
            "strategies (DeepSpeedStrategy, ...) need runner_type='FlexibleRunner'."
        )
    return str(strategy["type"])


class ShardedRunner(ResumableRunner):
    """Spreads the model over processes if the config says ``strategy=dict(type='FSDP2')``.

    The training is that of DDP, from the same first weights on: losses and weights are equal up
    to rounding. Building the model takes no memory, and each process makes or reads its own part
    of the weights alone. With one process there is nothing to spread.
    """

    _weights: DeferredWeights | None = None

    @property
    def spreads(self) -> bool:
        """Whether weights are spread over the processes of this run."""
        return bool(self.distributed) and strategy_of(self.cfg) == "FSDP2"

    def build_model(self, model: nn.Module | dict[str, Any]) -> nn.Module:
        """Builds the model; without memory for its weights if they are to be spread."""
        if not self.spreads or isinstance(model, nn.Module):
            return super().build_model(model)  # type: ignore[no-any-return]
        with deferred_weights() as self._weights:
            built: nn.Module = super().build_model(model)
        return built

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Spreads the model, or wraps it for DDP.

        Raises:
            ValueError: If it cannot be spread.
        """
        if not self.spreads:
            wrapped: nn.Module = super().wrap_model(model_wrapper_cfg, model)
            return wrapped
        if model_wrapper_cfg is not None:
            raise ValueError(
                "strategy FSDP2 wraps no model: leave model_wrapper_cfg out, or the strategy."
            )
        if not isinstance(model, EoMTSegmentor):
            raise ValueError(
                f"strategy FSDP2 spreads an EoMTSegmentor, not a {type(model).__name__}: leave "
                "strategy out."
            )
        device = torch.device(get_device())
        precision = resolve_precision(self._precision(), device)
        if precision == "fp16":
            raise ValueError(
                "optim_wrapper.precision is 'fp16', whose loss scale FSDP2 cannot share between "
                "processes here: set it to 'bf16' or 'fp32'."
            )
        weights, self._weights = self._weights, None
        shard_segmentor(model, weights or DeferredWeights(), device=device, precision=precision)
        self.logger.info(
            f"FSDP2: weights, gradients and optimiser state are spread over {self.world_size} "
            f"processes; blocks are gathered in {precision}."
        )
        return model

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Calls hooks; between those before and after a validation all weights are gathered."""
        if fn_name in ("after_val_epoch", "after_test_epoch") and is_sharded(self.model):
            scatter(self.model)
        super().call_hook(fn_name, **kwargs)
        if fn_name in ("before_val_epoch", "before_test_epoch") and is_sharded(self.model):
            gather(self.model)

    def _init_model_weights(self) -> None:
        """Loads pretrained weights; mmengine would send those of process 0 to all others."""
        if is_sharded(self.model):
            self.model.backbone.init_weights()
        else:
            super()._init_model_weights()

    def _precision(self) -> str:
        wrapper = self.optim_wrapper if self.optim_wrapper is not None else {}
        if isinstance(wrapper, dict):
            return str(wrapper.get("precision", "auto"))
        return str(getattr(wrapper, "precision", "fp32"))
