"""How much an exported model may differ from the one it was made of."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """What is still the same model.

    Args:
        agreement: Least share of pixels with the same label.
        largest: Largest difference of a score.
        mean: Largest mean difference of scores.

    Differences are counted in units of the largest score of the reference.
    """

    agreement: float
    largest: float
    mean: float


LIMITS = {
    # Rounding of another order of operations.
    "fp32": Limits(agreement=0.9999, largest=1e-3, mean=1e-5),
    # A mask's edge moves by a fraction of a pixel: a few scores change much, the mean little.
    "fp16": Limits(agreement=0.995, largest=0.2, mean=2e-3),
    "bf16": Limits(agreement=0.98, largest=0.5, mean=1e-2),
    # Only a dataset can tell whether these errors matter; the limits catch what is broken.
    "int8": Limits(agreement=0.9, largest=1.0, mean=5e-2),
}

DROPS = {"fp32": 0.05, "fp16": 0.2, "bf16": 0.5, "int8": 1.0}
"""By how much mIoU, in percent, may drop on a dataset."""
