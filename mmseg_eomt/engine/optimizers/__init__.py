"""Parameter groups and the optimiser wrapper."""

from __future__ import annotations

from mmseg_eomt.engine.optimizers.constructor import OptimWrapperConstructor
from mmseg_eomt.engine.optimizers.fused import with_fused
from mmseg_eomt.engine.optimizers.layer_decay import LayerDecayOptimWrapperConstructor
from mmseg_eomt.engine.optimizers.mixed_precision import (
    MixedPrecisionOptimWrapper,
    resolve_precision,
)
from mmseg_eomt.engine.optimizers.non_finite import NonFiniteError

__all__ = [
    "LayerDecayOptimWrapperConstructor",
    "MixedPrecisionOptimWrapper",
    "NonFiniteError",
    "OptimWrapperConstructor",
    "resolve_precision",
    "with_fused",
]
