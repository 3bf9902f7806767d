"""Random numbers of a sample that depend on its place in the run only."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

from mmseg_eomt.datasets.step_sampler import SampleIndex


@TRANSFORMS.register_module()
class SeedSample(BaseTransform):  # type: ignore[misc]
    """Seeds Python's and NumPy's global generators from the run's seed and the position.

    First in a training pipeline. With `StepSampler` the augmentation of a sample then does not
    depend on the number of workers or processes, and a resumed run draws what the uninterrupted
    one would have drawn. An index without a position (another sampler, or ``dataset[i]`` by
    hand) leaves the generators as they are.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Reads ``sample_idx``, which the dataset sets to the index it was asked for."""
        index = results.get("sample_idx")
        if isinstance(index, SampleIndex):
            words = np.random.SeedSequence((index.seed, index.position)).generate_state(5)
            np.random.seed(words[:4])
            random.seed(int(words[4]))
        return results
