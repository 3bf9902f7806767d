"""Random numbers of a sample that depend on its place in the run only."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS
from torch.utils.data import get_worker_info

from mmseg_eomt.datasets.step_sampler import SampleIndex


@TRANSFORMS.register_module()
class SeedSample(BaseTransform):  # type: ignore[misc]
    """Seeds the global generators from the run's seed and the position.

    Python's and NumPy's always, torch's in the loader's workers.

    First in a training pipeline. With `StepSampler` the augmentation of a sample then does not
    depend on the number of workers or processes, and a resumed run draws what the uninterrupted
    one would have drawn. An index without a position (another sampler, or ``dataset[i]`` by
    hand) leaves the generators as they are.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Reads ``sample_idx``, which the dataset sets to the index it was asked for."""
        index = results.get("sample_idx")
        if isinstance(index, SampleIndex):
            words = np.random.SeedSequence((index.seed, index.position)).generate_state(6)
            np.random.seed(words[:4])
            random.seed(int(words[4]))
            if get_worker_info() is not None:
                # For other people's transforms. In the main process torch's generator belongs to
                # the model, where a resume restores it.
                torch.default_generator.manual_seed(int(words[5]))
        return results
