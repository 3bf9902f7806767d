"""What happens between steps: schedules, parameter groups, teacher, collapse numbers, export.

Importing this package registers its hooks, train loop and optimiser constructor.
"""

from __future__ import annotations

from dinov2_pretraining.engine.collapse_hook import CollapseHook, effective_rank, feature_std
from dinov2_pretraining.engine.export_hook import ExportBackboneHook
from dinov2_pretraining.engine.param_groups import PretrainOptimWrapperConstructor
from dinov2_pretraining.engine.pretrain_loop import PretrainLoop
from dinov2_pretraining.engine.schedule_hook import PretrainScheduleHook

__all__ = [
    "CollapseHook",
    "ExportBackboneHook",
    "PretrainLoop",
    "PretrainOptimWrapperConstructor",
    "PretrainScheduleHook",
    "effective_rank",
    "feature_std",
]
