"""What can be checked: a description of folders, or a config that trains on one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def read_source(source: Mapping[str, Any] | str | Path) -> tuple[Any, tuple[int, int] | None, int]:
    """What `load_data` reads, and crop and channels if the source is a config.

    Args:
        source (dict | str | Path): A description, its YAML or JSON file, or a config (.py).

    Returns:
        tuple: The description, the crop (height, width) or None, and the channels of images.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If the config reads no folders of one's own.
    """
    if isinstance(source, Mapping) or Path(source).suffix.lower() != ".py":
        return source, None, 3
    if not Path(source).is_file():
        raise FileNotFoundError(f"{source}: no such config file.")
    cfg = Config.fromfile(str(source))
    datasets = [cfg[name].dataset for name in _LOADERS if cfg.get(name)]
    folder_datasets = [d for d in datasets if d.get("type") == "FolderSegDataset"]
    if not folder_datasets:
        kinds = ", ".join(sorted({str(d.get("type")) for d in datasets})) or "no dataset"
        raise ValueError(
            f"{source}: reads {kinds}; only folders of images and masks (FolderSegDataset) can be "
            "checked. Describe yours in a data file and check that."
        )
    data = next((d.data for d in folder_datasets if d.get("data")), None)
    if data is None:
        raise ValueError(
            f"{source}: has no data; it is given with --data when training. Check that data file."
        )
    backbone = (cfg.get("model") or {}).get("backbone") or {}
    return data, crop_of(cfg), int(backbone.get("in_channels", 3))


def crop_of(cfg: Mapping[str, Any]) -> tuple[int, int] | None:
    """The training crop (height, width) of a config."""
    loader = cfg.get("train_dataloader")
    for step in _steps(loader["dataset"].get("pipeline", ())) if loader else ():
        size = step.get("crop_size") or (
            step.get("size") if step.get("type") == "ScaleJitterCrop" else None
        )
        if isinstance(size, int):
            return size, size
        if size is not None:
            return int(size[0]), int(size[1])
    return None


def _steps(pipeline: Any) -> Iterator[Mapping[str, Any]]:
    for step in pipeline:
        if isinstance(step, Mapping):
            yield step
