"""Datasets, samplers and transforms."""

from __future__ import annotations

from mmseg_eomt.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "BalancedStepSampler": "samplers",
        "DataDescription": "data_description",
        "FolderSegDataset": "folder_dataset",
        "SampleIndex": "samplers",
        "StepSampler": "samplers",
        "load_data": "data_description",
    },
)
