"""The Runner of a segmentation run, plain or sharded."""

from __future__ import annotations

import copy
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import LogProcessor, Runner
from mmseg.registry import RUNNERS
from torch import nn
from torch.utils.data import DataLoader

from mmseg_eomt.checkpoints.describe import unwrap
from mmseg_eomt.engine.hooks.training_log import TrainingMonitorHook
from mmseg_eomt.engine.mixed_precision import resolve_precision
from mmseg_eomt.engine.process_group import start_without_cuda
from mmseg_eomt.engine.resume import ResumableRunner
from mmseg_eomt.engine.schedules import lr_factor
from mmseg_eomt.engine.sharding import (
    DeferredWeights,
    deferred_weights,
    gather,
    is_sharded,
    run_units,
    scatter,
    shard_segmentor,
)
from mmseg_eomt.engine.train_loop import AccumulationTrainLoop
from mmseg_eomt.models.eomt_segmentor import EoMTSegmentor, compile_blocks

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


@RUNNERS.register_module()
class SegmentationRunner(ShardedRunner):
    """Trains on one GPU, many GPUs or none.

    Beyond mmengine's: several processes work without CUDA (gloo); ``auto_scale_lr`` follows the
    global batch by a stated rule; the optimiser accumulates what ``AccumulationTrainLoop`` asks
    for; losses are read once per log line and true rates are logged (``TrainingMonitorHook`` in
    place of ``RuntimeInfoHook``, ``StepLogProcessor``); checkpoints and resumes are those of
    ``ResumableRunner``; ``strategy`` is that of ``ShardedRunner``. Arguments are mmengine's;
    ``auto_scale_lr`` takes ``enable``, ``base_batch_size`` and ``rule`` ('sqrt', default;
    'linear'; 'none').
    """

    _compiled = False

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """Starts a gloo process group first where there is no CUDA.

        Args:
            env_cfg (dict): Of mmengine.

        Raises:
            ValueError: If the launcher cannot work without CUDA, or did not set its variables.
        """
        if self.distributed:
            start_without_cuda(self.launcher, env_cfg.get("dist_cfg") or {})
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Wraps for distributed training; on CPUs without naming a device."""
        if self.distributed and not self.spreads and not torch.cuda.is_available():
            model_wrapper_cfg = {
                "type": "MMDistributedDataParallel",
                "broadcast_buffers": False,
                "find_unused_parameters": False,
                **(model_wrapper_cfg or {}),
                "device_ids": None,
            }
        wrapped: nn.Module = super().wrap_model(model_wrapper_cfg, model)
        return wrapped

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader[Any] | dict[str, Any],
        seed: int | None = None,
        diff_rank_seed: bool = False,
    ) -> DataLoader[Any]:
        """Builds a data loader; memory is pinned only where there is a device to copy it to."""
        if isinstance(dataloader, dict) and not torch.cuda.is_available():
            dataloader = {**dataloader, "pin_memory": False}
        loader: DataLoader[Any] = Runner.build_dataloader(dataloader, seed, diff_rank_seed)
        return loader

    def build_log_processor(self, log_processor: LogProcessor | dict[str, Any]) -> LogProcessor:
        """Uses ``StepLogProcessor`` unless the config names another type."""
        if isinstance(log_processor, dict):
            log_processor = {"type": "StepLogProcessor", **log_processor}
        return super().build_log_processor(log_processor)

    def register_hooks(
        self,
        default_hooks: dict[str, Hook | dict[str, Any] | None] | None = None,
        custom_hooks: list[Hook | dict[str, Any]] | None = None,
    ) -> None:
        """Registers hooks; exactly one logs rates and losses, and checkpoints are safe ones."""
        default_hooks = dict(default_hooks or {})
        checkpoint = default_hooks.setdefault("checkpoint", {"type": "SafeCheckpointHook"})
        if isinstance(checkpoint, dict) and checkpoint.get("type") == "CheckpointHook":
            default_hooks["checkpoint"] = {**checkpoint, "type": "SafeCheckpointHook"}
        if any(_is_monitor(hook) for hook in custom_hooks or []):
            default_hooks["runtime_info"] = None
        elif "runtime_info" not in default_hooks:
            default_hooks["runtime_info"] = {"type": "TrainingMonitorHook"}
        super().register_hooks(default_hooks, custom_hooks)

    def _maybe_compile(self, target: str) -> None:
        """Compiles the model's blocks if the config says ``compile``: True or a dict of options.

        MMEngine would compile the whole step, which matching on the host breaks apart. Options are
        ``mode`` and ``backend`` of :func:`compile_blocks`.

        Raises:
            ValueError: If ``compile`` is something else.
        """
        options = self.cfg.get("compile", None)
        if options is None or options is False or self._compiled:
            return
        known = ("mode", "backend")
        if options is not True and not (isinstance(options, dict) and set(options) <= set(known)):
            raise ValueError(
                f"compile is {options!r}: give True, False or a dict with {' and '.join(known)} of "
                "torch.compile."
            )
        model = unwrap(self.model)
        if not isinstance(model, EoMTSegmentor):
            super()._maybe_compile(target)
            return
        compile_blocks(model, **(options if isinstance(options, dict) else {}))
        if is_sharded(model):
            run_units(model)
        self._compiled = True
        self.logger.info(
            "Blocks are compiled at their first use: the first steps take long, and so do the "
            "first ones of another image size."
        )

    def build_optim_wrapper(self, optim_wrapper: Any) -> OptimWrapper:
        """Builds the optimiser, accumulating as many micro-batches as the train loop has.

        Raises:
            ValueError: If the config asks for another accumulation.
        """
        loop = self._train_loop
        if isinstance(optim_wrapper, dict) and isinstance(loop, AccumulationTrainLoop):
            given = optim_wrapper.get("accumulative_counts")
            if given not in (None, loop.plan.accumulate):
                raise ValueError(
                    f"optim_wrapper.accumulative_counts is {given}, but a step has "
                    f"{loop.plan.accumulate} micro-batches (train_cfg.global_batch_size "
                    f"{loop.global_batch_size}, train_dataloader.batch_size "
                    f"{loop.plan.micro_batch_size}, {loop.plan.world_size} processes): leave "
                    "accumulative_counts out."
                )
            optim_wrapper = copy.deepcopy(optim_wrapper)
            optim_wrapper["accumulative_counts"] = loop.plan.accumulate
        return super().build_optim_wrapper(optim_wrapper)

    def build_param_scheduler(self, scheduler: Any) -> Any:
        """Builds schedulers; those of a config count steps unless they say otherwise."""
        if isinstance(scheduler, dict) and "type" in scheduler:
            scheduler = [scheduler]
        if isinstance(scheduler, list):
            scheduler = [
                {"by_epoch": False, **item} if isinstance(item, dict) else item
                for item in scheduler
            ]
        return super().build_param_scheduler(scheduler)

    def scale_lr(
        self, optim_wrapper: OptimWrapper, auto_scale_lr: dict[str, Any] | None = None
    ) -> None:
        """Scales all rates with the global batch.

        Args:
            optim_wrapper (OptimWrapper): Whose groups' ``lr`` is multiplied.
            auto_scale_lr (dict, optional): As of :func:`lr_factor`, and so are the errors.
        """
        if not auto_scale_lr or not auto_scale_lr.get("enable", False):
            return
        size = self._global_batch_size()
        ratio = lr_factor(auto_scale_lr, size)
        self.logger.info(
            f"Learning rates are multiplied by {ratio:.4g}: global batch {size}, chosen for "
            f"{auto_scale_lr['base_batch_size']}, rule '{auto_scale_lr.get('rule', 'sqrt')}'."
        )
        for group in optim_wrapper.optimizer.param_groups:
            group["lr"] = group["lr"] * ratio

    def _global_batch_size(self) -> int:
        loop = self._train_loop
        if isinstance(loop, AccumulationTrainLoop):
            return loop.global_batch_size
        if isinstance(loop, dict) and "global_batch_size" in loop:
            return int(loop["global_batch_size"])
        loader = self._train_dataloader
        size = loader["batch_size"] if isinstance(loader, dict) else loader.batch_size
        return int(size) * int(self.world_size)


def _is_monitor(hook: Hook | dict[str, Any]) -> bool:
    if isinstance(hook, dict):
        return hook.get("type") in ("TrainingMonitorHook", TrainingMonitorHook)
    return isinstance(hook, TrainingMonitorHook)
