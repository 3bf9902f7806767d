"""Where reports may be written: anywhere but among the images and masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmseg_eomt.datasets.check.sources import read_source
from mmseg_eomt.datasets.data_description import load_data


def refuse_inside_dataset(path: str | Path, data: Mapping[str, Any] | str | Path) -> None:
    """Refuses a report inside a folder of the dataset, or over its description.

    Raises:
        ValueError: If ``path`` is such a place.
        FileNotFoundError: If its folder does not exist.
    """
    target = Path(path).resolve()
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {target.parent}. Make it first.")
    if not isinstance(data, Mapping) and target == Path(data).resolve():
        raise ValueError(f"{path}: is what is checked; give another name for the report.")
    try:
        description = load_data(read_source(data)[0], check_splits=[])
    except (ValueError, OSError):
        return  # the check itself will say what is wrong with it
    for folders in description.splits.values():
        for pair in folders:
            for folder in (pair.images, pair.masks):
                if target.is_relative_to(folder.resolve()):
                    raise ValueError(
                        f"{path}: lies in {folder}, a folder of the dataset, which a check never "
                        "writes to. Give another place."
                    )
