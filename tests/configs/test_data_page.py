"""The table of docs/data.md says what the configs do."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from mmseg_eomt.datasets.transforms import EoMTColorJitter, ScaleJitterCrop
from tests.configs.conftest import read
from tests.configs.published import ROOT

PAGE = ROOT.parent / "docs" / "data.md"
COLUMNS = ("DINOv2", "DINOv3", "Cityscapes configs, both")
# The quickstart's model is a toy of another size.
NAMES = sorted(p.stem for p in (ROOT / "eomt").glob("*.py") if p.stem != "tiny_quickstart")


def table() -> dict[str, dict[str, str]]:
    """Cells of the first table by column and argument."""
    lines = PAGE.read_text(encoding="utf-8").split("## Defaults")[1].split("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in lines if row[:1] == "|"]
    assert tuple(rows[0][1:]) == COLUMNS
    return {
        column: {row[0]: row[number] for row in rows[2:]}
        for number, column in enumerate(COLUMNS, start=1)
    }


def column_of(name: str) -> str:
    return COLUMNS[2] if "cityscapes" in name else COLUMNS[name.startswith("dinov3")]


def option(step: dict[str, Any], kind: type, name: str) -> Any:
    """An argument of a step, from the config or by default."""
    return step.get(name, inspect.signature(kind).parameters[name].default)


def plain(numbers: Any) -> str:
    return ", ".join(f"{number:.3f}".rstrip("0").rstrip(".") for number in numbers)


def cells(name: str) -> dict[str, str]:
    """What the config of this name says."""
    cfg = read(name)
    steps = {step["type"]: step for step in cfg.train_dataloader.dataset.pipeline}
    jitter, crop = steps["EoMTColorJitter"], steps["ScaleJitterCrop"]
    kinds = list(steps)
    strengths = [
        option(jitter, EoMTColorJitter, key)
        for key in ("brightness", "contrast", "saturation", "hue")
    ]
    patch = cfg.model.backbone.get("patch_size")
    short = {step["type"]: step for step in cfg.val_dataloader.dataset.pipeline}["ResizeShortSide"]
    assert set(kinds[kinds.index("ScaleJitterCrop") + 1 :]) <= {"PackSegInputs", "PackByteInputs"}
    more = sorted(set(kinds) & {"RandomRotation", "RandomQuarterTurn", "ChannelDrop"})
    return {
        "crop (height, width)": str(tuple(crop["size"])),
        "patch size": "16" if patch is None else f"{patch} (resampled from 14)",
        "steps before the crop": ", ".join(kinds[: kinds.index("ScaleJitterCrop")]),
        "brightness, contrast, saturation, hue": plain(strengths),
        "probability of each of them": str(option(jitter, EoMTColorJitter, "prob")),
        "horizontal flip": str(steps["RandomFlip"]["prob"]),
        "scale jitter, aspect kept": str(tuple(option(crop, ScaleJitterCrop, "scale"))),
        "draws of a crop at most": str(option(crop, ScaleJitterCrop, "max_tries")),
        "cat_max_ratio": str(option(crop, ScaleJitterCrop, "cat_max_ratio")),
        "rotation, channel drop": ", ".join(more) or "none",
        "sampler": cfg.train_dataloader.sampler.type,
        "global batch": str(cfg.train_cfg.global_batch_size),
        "mean (RGB)": plain(cfg.model.data_preprocessor.mean),
        "standard deviation (RGB)": plain(cfg.model.data_preprocessor.std),
        "validation: short side": str(short["size"]),
        "validation: mode": cfg.model.test_cfg.mode,
        "validation: sampler": cfg.val_dataloader.sampler.type,
    }


@pytest.mark.parametrize("name", NAMES)
def test_table_of_defaults_is_that_of_the_configs(name: str) -> None:
    said, found = table()[column_of(name)], cells(name)
    if "cityscapes" in name:
        found["patch size"] = found["patch size"].split(" ")[0]
    assert said == found
