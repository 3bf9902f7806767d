"""Runner, train loop and log lines."""

from __future__ import annotations

from mmseg_eomt.engine.runner.accumulation_loop import AccumulationTrainLoop
from mmseg_eomt.engine.runner.batch_plan import BatchPlan, plan_batches
from mmseg_eomt.engine.runner.log_processor import StepLogProcessor
from mmseg_eomt.engine.runner.segmentation_runner import SegmentationRunner

__all__ = [
    "AccumulationTrainLoop",
    "BatchPlan",
    "SegmentationRunner",
    "StepLogProcessor",
    "plan_batches",
]
