"""Completes a config and checks it, before anything is built that takes time.

What a config leaves open follows from the dataset: classes, their number, their ids. Whatever can
be known to be wrong before the first step is one error here, with the mend.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS

from mmseg_eomt.checkpoints.weights_file import read_header
from mmseg_eomt.datasets.check.findings import ERROR, Finding
from mmseg_eomt.datasets.check.quick_check import quick_check
from mmseg_eomt.datasets.check.report import finding_lines
from mmseg_eomt.datasets.data_description import load_data
from mmseg_eomt.engine.train_loop import BatchPlan, plan_batches
from mmseg_eomt.header import ModelHeader

LOADERS = {"train": "train_dataloader", "val": "val_dataloader", "test": "test_dataloader"}
TRAIN_SPLITS = ("train", "val")


@dataclass(frozen=True)
class ResolvedRun:
    """A complete config and what was learnt on the way.

    Attributes:
        cfg: The config; the one given is not changed.
        dataset_meta: 'classes', 'class_ids' and 'palette' of the dataset.
        images: Number of images by split.
        batches: How the global batch is spread.
    """

    cfg: Config
    dataset_meta: dict[str, Any]
    images: dict[str, int]
    batches: BatchPlan | None


def resolve_config(
    cfg: Config,
    *,
    data: Any = None,
    world_size: int = 1,
    splits: tuple[str, ...] = TRAIN_SPLITS,
) -> ResolvedRun:
    """Complete and check a config.

    Args:
        cfg: An MMSegmentation config of this package.
        data: Description of one's own folders (dict, or path of a YAML or JSON file) for all
            dataloaders; None keeps the dataset of the config.
        world_size: Number of processes of the run.
        splits: The splits this run reads.

    Raises:
        FileNotFoundError: If a folder or file is missing.
        ValueError: If something contradicts something else; the message says what to change.
    """
    cfg = copy.deepcopy(cfg)
    init_default_scope(cfg.get("default_scope", "mmseg"))
    if data is not None:
        set_data(cfg, data)
    set_channels(cfg)
    datasets = {split: _build_dataset(cfg, split) for split in splits if _has(cfg, split)}
    if "train" in splits and "train" not in datasets:
        raise ValueError("the config has no train_dataloader; take one that trains.")
    meta = _common_meta(datasets, cfg)
    _set_num_classes(cfg, meta)
    batches = None
    if "train" in splits:
        check_pretrained(cfg.model.backbone.get("pretrained"))
        batches = plan_batches(
            cfg.train_cfg.global_batch_size,
            world_size=world_size,
            batch_size=cfg.train_dataloader.batch_size,
        )
    images = {split: len(dataset) for split, dataset in datasets.items()}
    return ResolvedRun(cfg=cfg, dataset_meta=meta, images=images, batches=batches)


def set_data(cfg: Config, data: Any) -> None:
    """Point every dataloader at one description of folders.

    Raises:
        FileNotFoundError: If the file or a folder is missing.
        ValueError: If the description is wrong, or the config is for another dataset type.
    """
    description = load_data(data)
    for split, name in LOADERS.items():
        loader = cfg.get(name)
        if not loader:
            continue
        dataset = loader.dataset
        if dataset.type != "FolderSegDataset":
            raise ValueError(
                f"--data (data=) describes one's own folders, but {name} of this config reads "
                f"{dataset.type}: take a *_folder config, such as eomt/dinov3_vits16_folder.py."
            )
        dataset.data = description.as_dict()
        if split == "test" and "test" not in description.splits:
            dataset.split = "val"


def set_channels(cfg: Config) -> None:
    """Give the folder datasets and the preprocessor the channels of the backbone.

    A model of three channels is left as it is.

    Raises:
        ValueError: If mean or std are for another number of channels, or a dataset cannot read
            so many.
    """
    channels = cfg.model.backbone.get("in_channels", 3)
    if channels == 3:
        return
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise ValueError(f"model.backbone.in_channels is {channels!r}: give a whole number from 1.")
    preprocessor = cfg.model.data_preprocessor
    for key in ("mean", "std"):
        numbers = preprocessor.get(key)
        if numbers is not None and len(numbers) != channels:
            raise ValueError(
                f"model.data_preprocessor.{key} has {len(numbers)} numbers ({list(numbers)}), but "
                f"model.backbone.in_channels is {channels}: give one per channel, for pixel values "
                "from 0 to 255 (in Python transform_args=dict(normalize=dict(mean=[...], "
                "std=[...])), for values from 0 to 1)."
            )
    # Bands stay in the order of the file; only three channels are BGR.
    preprocessor.bgr_to_rgb = False
    for name in LOADERS.values():
        loader = cfg.get(name)
        if not loader:
            continue
        if loader.dataset.type != "FolderSegDataset":
            raise ValueError(
                f"model.backbone.in_channels is {channels}, but {name} reads "
                f"{loader.dataset.type}, which gives three channels: take a *_folder config."
            )
        loader.dataset.in_channels = channels


def check_pretrained(pretrained: Any) -> None:
    """Check that a local pretrained backbone exists; names and URLs are checked when loaded.

    Raises:
        FileNotFoundError: If it is the path of a file that does not exist.
    """
    if not isinstance(pretrained, str) or _is_hub_name(pretrained):
        return
    url = urlsplit(pretrained)
    if url.scheme in ("http", "https"):
        return
    path = Path(url.path if url.scheme == "file" else pretrained.split("#", 1)[0])
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such backbone weights (model.backbone.pretrained, --backbone-weights). "
            "Give a file, a URL, 'timm' for the released weights, or None to train from scratch."
        )


def check_same_classes(
    path: str | Path, meta: Mapping[str, Any], *, header: ModelHeader | None = None
) -> None:
    """Check that weights were trained for the classes of a dataset.

    Args:
        path: The weights.
        meta: Of the dataset.
        header: Of the weights, if it has been read already.

    Raises:
        ValueError: If the file names other classes.
    """
    classes = list((header or read_header(path)).classes)
    wanted = list(meta["classes"])
    if classes != wanted:
        raise ValueError(
            f"{path}: trained for {_short(classes)}, but the dataset has {_short(wanted)}. Use the "
            "data (or config) it was trained with; to train on other classes start from it with "
            "--checkpoint."
        )


def _is_hub_name(name: str) -> bool:
    return name == "timm" or name.startswith(("timm/", "hf-hub:"))


def _has(cfg: Config, split: str) -> bool:
    return bool(cfg.get(LOADERS[split]))


def _build_dataset(cfg: Config, split: str) -> Any:
    name = LOADERS[split]
    dataset_cfg = cfg[name].dataset
    if dataset_cfg.get("type") == "FolderSegDataset" and not dataset_cfg.get("data"):
        raise ValueError(
            f"{name} has no data: this config is for one's own folders. Say which with "
            "--data DATA.yaml (data= in Python)."
        )
    _check_folders(name, dataset_cfg)
    dataset = DATASETS.build(copy.deepcopy(dataset_cfg))
    if len(dataset) == 0:
        raise ValueError(
            f"the {split} set ({name}, {dataset_cfg.get('type')}) has no images. Check its folders"
            f" and file endings: {_places(dataset_cfg)}."
        )
    return dataset


def _check_folders(name: str, dataset_cfg: Mapping[str, Any]) -> None:
    """MMSegmentation's datasets take a missing folder for an empty one."""
    root = Path(dataset_cfg.get("data_root") or "")
    for key, prefix in (dataset_cfg.get("data_prefix") or {}).items():
        if prefix and not (root / prefix).is_dir():
            raise FileNotFoundError(
                f"{root / prefix}: no such folder ({name}.dataset.data_prefix.{key}). Put the "
                f"dataset there, or set {name}.dataset.data_root."
            )


def _places(dataset_cfg: Mapping[str, Any]) -> str:
    root = Path(dataset_cfg.get("data_root") or "")
    prefixes = [str(root / prefix) for prefix in (dataset_cfg.get("data_prefix") or {}).values()]
    if prefixes:
        return ", ".join(prefixes)
    pairs = (dataset_cfg.get("data") or {}).get(dataset_cfg.get("split", "train"))
    return ", ".join(str(pair["images"]) for pair in pairs or ()) or str(root)


def _common_meta(datasets: Mapping[str, Any], cfg: Config) -> dict[str, Any]:
    """Meta information that all splits share."""
    first: dict[str, Any] | None = None
    for split, dataset in datasets.items():
        meta = dict(dataset.metainfo)
        if not meta.get("classes"):
            raise ValueError(
                f"the dataset of {LOADERS[split]} ({type(dataset).__name__}) has no class names: "
                "give them in dataset.metainfo=dict(classes=[...], palette=[...])."
            )
        if first is None:
            first = meta
        elif list(first["classes"]) != list(meta["classes"]):
            raise ValueError(
                f"the {split} set has {_short(meta['classes'])}, the first one has "
                f"{_short(first['classes'])}: all splits need the same classes in one order."
            )
    if first is None:
        raise ValueError("the config has no dataloader that this tool could read.")
    return first


def _set_num_classes(cfg: Config, meta: Mapping[str, Any]) -> None:
    head = cfg.model.decode_head
    found, given = len(meta["classes"]), head.get("num_classes")
    if given not in (None, found):
        raise ValueError(
            f"model.decode_head.num_classes is {given}, but the dataset has {found} classes "
            f"({_short(meta['classes'])}): leave num_classes at None, or take the config of this "
            "dataset."
        )
    head.num_classes = found


def _short(classes: Any) -> str:
    names = [str(name) for name in classes]
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    return f"{len(names)} classes ({shown})"


_FULL = "tools/check_dataset.py reads every file."


def check_data(cfg: Config, splits: Sequence[str]) -> None:
    """Warns of what can be read but is likely to be wrong.

    Args:
        cfg: A resolved config.
        splits: The splits of the run.

    Raises:
        ValueError: If all masks of a split show that their values are not class ids.
    """
    findings = _find(cfg, splits, data=None)
    errors = [finding for finding in findings if finding.severity == ERROR]
    if errors:
        raise ValueError(f"{_text(errors)}\n{_FULL}")
    # The other processes would say the same.
    if findings and os.environ.get("RANK", "0") == "0":
        print_log(f"{_text(findings)}\n{_FULL}", logger="current", level=logging.WARNING)


@contextmanager
def explaining_data(cfg: Config, splits: Sequence[str], *, data: Any = None) -> Iterator[None]:
    """Adds the likely mistake to what a dataset says of its masks.

    Args:
        cfg: The config that is being resolved.
        splits: The splits of the run.
        data: Given instead of the config's.

    Raises:
        ValueError: That of the block, explained if there is something to add.
    """
    try:
        yield
    except ValueError as error:
        if "mask" not in str(error):
            raise
        try:
            findings = _find(cfg, splits, data=data)
        except (ValueError, OSError):
            findings = []  # the error at hand is the one to show
        guesses = [finding for finding in findings if finding.code.startswith("guess_")]
        if not guesses:
            raise
        raise ValueError(f"{error}\n{_text(guesses)}\n{_FULL}") from error


def _find(cfg: Config, splits: Sequence[str], *, data: Any) -> list[Finding]:
    datasets = [cfg[f"{s}_dataloader"].dataset for s in splits if cfg.get(f"{s}_dataloader")]
    own = [one for one in datasets if one.get("type") == "FolderSegDataset"]
    if not own or len({str(one.get("data")) for one in own}) > 1:
        return []  # not one's own folders, or several descriptions
    content = data if data is not None else own[0].get("data")
    if content is None:
        return []
    names = dict.fromkeys(str(one.get("split", "train")) for one in own)
    description = load_data(content, check_splits=[])
    return quick_check(description, [name for name in names if name in description.splits])


def _text(findings: Sequence[Finding]) -> str:
    return "\n".join(line for finding in findings for line in finding_lines(finding))
