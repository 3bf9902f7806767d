"""Describe a built model as a header: names from the config, dimensions from the model."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from mmseg_eomt.header import BACKBONE_TYPES, ModelHeader
from mmseg_eomt.images.painting import default_palette

VERSIONED_PACKAGES = ("mmseg_eomt", "torch", "timm", "mmsegmentation", "mmengine")


def header_from_config(
    cfg: Mapping[str, Any], dataset_meta: Mapping[str, Any], *, model: nn.Module
) -> ModelHeader:
    """Describe a built model: names from the config, resolved dimensions from the model.

    Args:
        cfg: The resolved run config (`cfg.model`, `cfg.test_dataloader` or `cfg.val_dataloader`).
        dataset_meta: `metainfo` of the dataset: 'classes', optionally 'palette' and 'class_ids'.
        model: The built `EoMTSegmentor`, wrapped for distributed training or not.

    Raises:
        ValueError: If the config holds something that a header has no field for.
    """
    model = unwrap(model)
    model_cfg = cfg["model"]
    model_cfg = model_cfg.get("module", model_cfg)  # test-time augmentation wraps the model config
    backbone_cfg = model_cfg["backbone"]
    families = {name: family for family, name in BACKBONE_TYPES.items()}
    backbone_type = str(backbone_cfg["type"]).rsplit(".", 1)[-1]
    if backbone_type not in families:
        raise ValueError(
            f"backbone type {backbone_type!r} cannot be written into lean weights; allowed: "
            f"{', '.join(families)}."
        )
    backbone: Any = model.backbone
    head: Any = model.decode_head
    preprocessor = model_cfg.get("data_preprocessor") or cfg["data_preprocessor"]
    in_channels = int(backbone.in_channels)
    test_cfg = model_cfg.get("test_cfg") or {}
    window = test_cfg.get("window_size")
    classes = tuple(str(name) for name in dataset_meta["classes"])
    class_ids = dataset_meta.get("class_ids")
    palette = dataset_meta.get("palette") or default_palette(len(classes))
    return ModelHeader(
        family=families[backbone_type],
        architecture=plain(backbone_cfg["name" if backbone_type == "TimmViT" else "arch"]),
        patch_size=int(backbone.patch_size),
        image_size=_pair(backbone_cfg.get("image_size", 512)),
        in_channels=in_channels,
        num_queries=int(head.num_queries),
        num_joint_blocks=int(backbone.num_joint_blocks),
        num_upscale_blocks=len(head.upscale),
        activation=str(head.activation),
        classes=classes,
        class_ids=tuple(int(i) for i in (range(len(classes)) if class_ids is None else class_ids)),
        palette=tuple((int(r), int(g), int(b)) for r, g, b in palette),
        mean=_per_channel(preprocessor.get("mean"), in_channels, default=0.0),
        std=_per_channel(preprocessor.get("std"), in_channels, default=1.0),
        bgr_to_rgb=bool(preprocessor.get("bgr_to_rgb", False)),
        ignore_index=int(head.ignore_index),
        test_mode=str(test_cfg.get("mode", "window")),
        test_size=test_size_of(cfg),
        window_size=None if window is None else _pair(window),
        backbone_args={
            key: plain(backbone_cfg[key])
            for key in ("registers", "model_kwargs")
            if backbone_cfg.get(key) is not None
        },
        versions=package_versions(),
    )


def unwrap(model: nn.Module) -> nn.Module:
    """Return the segmentor inside a distributed or test-time-augmentation wrapper."""
    while not hasattr(model, "decode_head") and isinstance(
        getattr(model, "module", None), nn.Module
    ):
        model = model.module  # type: ignore[assignment]
    return model


def package_versions() -> dict[str, str]:
    """Versions of what wrote a file, for people who read it later."""
    versions = {"python": platform.python_version()}
    for name in VERSIONED_PACKAGES:
        for distribution in (name, f"onedl-{name}"):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[name] = importlib.metadata.version(distribution)
    return versions


def plain(value: Any) -> Any:
    """Turn config containers into plain dicts and lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, (list, tuple)):
        height, width = value
        return int(height), int(width)
    return int(value), int(value)


def _per_channel(value: Any, count: int, *, default: float) -> tuple[float, ...]:
    if value is None:
        return (default,) * count
    return tuple(float(item) for item in value)


def test_size_of(cfg: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width) that resized test images just cover; None where they keep their size."""
    for name in ("test_dataloader", "val_dataloader"):
        loader = cfg.get(name)
        if loader:
            for step in loader["dataset"].get("pipeline") or ():
                if str(step["type"]).rsplit(".", 1)[-1] == "ResizeShortSide":
                    return _pair(step["size"])
            return None
    return None


# Name on the command line -> mmseg's dataset, whose METAINFO has names and colours.
KNOWN = {
    "ade20k": "ADE20KDataset",
    "cityscapes": "CityscapesDataset",
    "coco_stuff": "COCOStuffDataset",
}


@dataclass(frozen=True)
class ClassNames:
    """Names of classes in the order of the class head.

    Attributes:
        names: One per class.
        ids: The id that predictions carry for each.
        palette: RGB colours; None where none are given.
        source: Where they are from, for errors.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    palette: tuple[tuple[int, int, int], ...] | None = None
    source: str = "the file"


def numbered(count: int) -> ClassNames:
    """'class 0', 'class 1', ..."""
    return ClassNames(tuple(f"class {i}" for i in range(count)), tuple(range(count)))


def load_classes(source: str) -> ClassNames:
    """Class names that a user chose.

    Args:
        source: 'ade20k', 'cityscapes', 'coco_stuff'; or a file: one name a line, or YAML or JSON
            with a list of names or ``{id: name}``, also under the key 'classes' as in data.yaml.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has no names.
    """
    if source in KNOWN:
        import mmseg.datasets

        meta: Mapping[str, Any] = getattr(mmseg.datasets, KNOWN[source]).METAINFO
        return ClassNames(
            names=tuple(meta["classes"]),
            ids=tuple(range(len(meta["classes"]))),
            palette=tuple((int(r), int(g), int(b)) for r, g, b in meta["palette"]),
            source=source,
        )
    path = Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"classes: {source!r} is neither {', '.join(KNOWN)} nor a file with class names."
        )
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as a list of class names ({error}).") from error
    if isinstance(content, Mapping):
        content = content.get("classes", content)
    if not isinstance(content, (Mapping, list)):
        content = [line.strip() for line in text.splitlines() if line.strip()]
    return names_of(content, str(path))


def names_of(content: Any, source: str) -> ClassNames:
    """Names from a list, or from a mapping of ids to names (or to ``{name: ...}``).

    Raises:
        ValueError: If it is neither, or an id or a name is none.
    """
    if isinstance(content, list):
        content = dict(enumerate(content))
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{source}: classes are {content!r:.80}; expected names by id.")
    ids, names = [], []
    for key, value in content.items():
        name = value.get("name") if isinstance(value, Mapping) else value
        # JSON has text keys only.
        number = int(key) if isinstance(key, str) and key.isdecimal() else key
        if not isinstance(number, int) or isinstance(number, bool) or not isinstance(name, str):
            raise ValueError(
                f"{source}: class {key!r}: {value!r:.80} is no pair of an id and a name."
            )
        ids.append(number)
        names.append(name)
    return ClassNames(tuple(names), tuple(ids), source=source)
