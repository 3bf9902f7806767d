"""The train loop of pretraining: mmseg_eomt's, for a model without a decode head."""

from __future__ import annotations

from typing import Any

from mmseg.registry import LOOPS

from mmseg_eomt.engine.train_loop import AccumulationTrainLoop


@LOOPS.register_module()
class PretrainLoop(AccumulationTrainLoop):
    """One step is one update of the weights, over any number of micro-batches.

    A batch of more micro-batches is nearly that of one: the centre is moved once a step by all of
    them, but Sinkhorn-Knopp and KoLeo see the images that all processes have at once.
    """

    def prepare_step(self, model: Any, data_batch: list[dict[str, Any]]) -> None:
        """Does nothing: ``PretrainScheduleHook`` tells the model what it must know."""
