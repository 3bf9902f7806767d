"""What the recipes are, written down by hand from their publications (not from the configs)."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2] / "configs"
CONFIGS = sorted(path.stem for path in (ROOT / "eomt").glob("*.py"))

DINOV2 = ("vits14", "vitb14", "vitl14", "vitg14")
DINOV3 = ("vits16", "vits16plus", "vitb16", "vitl16", "vitl16plus", "vith16plus", "vit7b16")
LIGHTLY_SIZES = ("vits16", "vitb16", "vitl16")

# depth, joint blocks
SIZES = {
    **dict.fromkeys(("vits14", "vitb14", "vits16", "vits16plus", "vitb16"), (12, 3)),
    **dict.fromkeys(("vitl14", "vitl16", "vitl16plus"), (24, 4)),
    "vith16plus": (32, 5),
    **dict.fromkeys(("vitg14", "vit7b16"), (40, 5)),
}

REQUIRED = (
    {f"dinov2_{arch}_{data}" for arch in DINOV2 for data in ("ade20k", "cityscapes-1024", "folder")}
    | {f"dinov3_{arch}_{data}" for arch in DINOV3 for data in ("ade20k", "folder")}
    | {
        f"dinov3_{arch}_{data}"
        for arch in LIGHTLY_SIZES
        for data in ("coco_stuff", "cityscapes-1024")
    }
    | {"dinov2_vitl14_ade20k-official", "dinov2_vitl14_cityscapes-1024-official"}
    | {"dinov3_vitl16_ade20k-official", "tiny_quickstart"}
)

# Config -> (mIoU, who published it). All others: none published.
PUBLISHED = {
    "dinov2_vitl14_ade20k-official": ("58.4", "the authors of EoMT"),
    "dinov2_vitl14_cityscapes-1024-official": ("84.2", "the authors of EoMT"),
    "dinov3_vitl16_ade20k-official": ("59.5", "the authors of EoMT"),
    "dinov3_vits16_ade20k": ("46.6", "LightlyTrain"),
    "dinov3_vitb16_ade20k": ("54.4", "LightlyTrain"),
    "dinov3_vitl16_ade20k": ("59.1", "LightlyTrain"),
    "dinov3_vits16_cityscapes-1024": ("78.6", "LightlyTrain"),
    "dinov3_vitb16_cityscapes-1024": ("81.0", "LightlyTrain"),
    "dinov3_vitl16_cityscapes-1024": ("84.4", "LightlyTrain"),
    "dinov3_vits16_coco_stuff": ("45.0", "LightlyTrain"),
    "dinov3_vitb16_coco_stuff": ("50.1", "LightlyTrain"),
    "dinov3_vitl16_coco_stuff": ("52.5", "LightlyTrain"),
}

# Dataset part of the name -> crop, queries, steps, classes. Folder data bring their own classes.
PROTOCOLS = {
    "ade20k": (512, 100, 40_000, 150),
    "coco_stuff": (512, 200, 88_704, 171),
    "cityscapes-1024": (1024, 200, 19_795, 19),
    "folder": (512, 100, 40_000, None),
    "ade20k-official": (512, 100, None, 150),
    "cityscapes-1024-official": (1024, 100, None, 19),
}

# Config -> steps, warm-ups (head, backbone), annealing windows in steps.
OFFICIAL = {
    "dinov2_vitl14_ade20k-official": (
        39_153,
        (500, 1_000),
        [(6_520, 13_040), (13_040, 19_560), (19_560, 26_080), (26_080, 32_600)],
    ),
    "dinov2_vitl14_cityscapes-1024-official": (
        19_795,
        (500, 1_000),
        [(3_317, 6_634), (6_634, 9_951), (9_951, 13_268), (13_268, 16_585)],
    ),
    "dinov3_vitl16_ade20k-official": (
        20_208,
        (2_000, 3_000),
        [(0, 3_000), (6_520, 9_780), (9_780, 13_040), (13_040, 16_300)],
    ),
}


def data_of(name: str) -> str:
    """The part of a config's name behind family and architecture."""
    return name.split("_", 2)[2]


def arch_of(name: str) -> str:
    """The architecture in a config's name."""
    return name.split("_")[1]
