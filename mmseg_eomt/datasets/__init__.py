"""Datasets, samplers and transforms."""

from __future__ import annotations

import mmseg_eomt.registration  # noqa: F401  (comes first)
from mmseg_eomt.datasets import transforms
from mmseg_eomt.datasets.data_description import DataDescription, load_data
from mmseg_eomt.datasets.folder_dataset import FolderSegDataset
from mmseg_eomt.datasets.samplers import BalancedStepSampler, SampleIndex, StepSampler

__all__ = [
    "BalancedStepSampler",
    "DataDescription",
    "FolderSegDataset",
    "SampleIndex",
    "StepSampler",
    "load_data",
    "transforms",
]
