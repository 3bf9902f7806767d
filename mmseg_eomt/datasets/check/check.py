"""Reads all of a dataset and reports what is wrong; changes nothing in it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmseg_eomt.datasets.check.file_lists import list_pairs
from mmseg_eomt.datasets.check.findings import ERROR, NOTE, DatasetReport, Finding
from mmseg_eomt.datasets.check.likely_mistakes import likely_mistakes
from mmseg_eomt.datasets.check.pair_facts import PairFacts, read_pair
from mmseg_eomt.datasets.check.split_rules import across_splits, duplicates, split_findings
from mmseg_eomt.datasets.check.split_tally import SplitTally, ValueClasses
from mmseg_eomt.datasets.data_description import DataDescription, load_data
from mmseg_eomt.datasets.file_pairs import FilePair, every_nth

SAMPLES = 6  # pictures of a split
_AHEAD = 64  # pairs in work or waiting for each worker: bounds memory, whatever the dataset


def check_dataset(
    data: Mapping[str, Any] | str | Path,
    *,
    workers: int | None = None,
    crop: int | tuple[int, int] | None = None,
    in_channels: int | None = None,
    console: Console | None = None,
) -> DatasetReport:
    """Reads every image and mask and reports faults by file name. Writes nothing.

    Args:
        data (dict | str | Path): What `load_data` reads, or a config that trains on it.
        workers (int, optional): Threads; decoding runs outside Python. Defaults to None: one for
            each core, 16 at most.
        crop (int | tuple[int, int], optional): Training crop, (height, width), to compare sizes
            with. Defaults to None: that of the config, if there is one.
        in_channels (int, optional): Channels that the model takes. Defaults to None: those of
            the config, or 3.
        console (Console, optional): Where progress is drawn, if it is a terminal. Defaults to
            None: nowhere.

    Returns:
        DatasetReport: Findings and numbers. A wrong description is a finding, too.

    Raises:
        ValueError: If an argument is wrong, or a config reads no folders.
        FileNotFoundError: If there is no such config.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}: give 1 or more.")
    content, config_crop, config_channels = read_source(data)
    channels = config_channels if in_channels is None else in_channels
    if channels < 1:
        raise ValueError(f"in_channels is {channels}: give 1 or more.")
    if isinstance(crop, int):
        crop = (crop, crop)
    crop = crop or config_crop
    if crop is not None and min(crop) < 1:
        raise ValueError(f"crop is {crop}: give sides of 1 or more.")
    name = "data" if isinstance(data, Mapping) else str(data)
    try:
        description = load_data(content, check_splits=[])
    except (ValueError, OSError) as error:
        report = DatasetReport(source=name, crop=crop)
        report.add([Finding(ERROR, "description", "", str(error))])
        return report
    report = DatasetReport(
        source=name,
        classes=description.classes,
        class_ids=description.class_ids,
        palette=description.palette,
        crop=crop,
        in_channels=channels,
    )
    tallies = []
    lists: dict[str, list[FilePair]] = {}
    for split in description.splits:
        lists[split], findings = list_pairs(description.folders(split), split)
        report.add(findings)
    values = ValueClasses(description)
    with _Bar(console, sum(map(len, lists.values()))) as bar:
        for split, pairs in lists.items():
            tally = SplitTally(split, values, description.num_classes)
            for facts in read_all(pairs, workers, channels):
                tally.add(facts)
                bar.step(split)
            tallies.append(tally)
            report.splits[split] = tally.numbers
            report.samples += [(split, *pair) for pair in _pictures(tally)]
    for tally in tallies:
        report.add(likely_mistakes(tally, description))
        report.add(split_findings(tally, description, crop))
    report.add(across_splits(tallies, description))
    report.add(duplicates(tallies))
    report.add(_missing_splits(description))
    return report


def read_all(pairs: Sequence[FilePair], workers: int | None, channels: int) -> Iterator[PairFacts]:
    """Facts of all pairs, in order, read by several threads a bounded number ahead."""
    count = workers or min(16, os.cpu_count() or 1)
    with ThreadPoolExecutor(count) as pool:
        waiting: list[Any] = []
        try:
            for pair in pairs:
                waiting.append(pool.submit(read_pair, pair, channels=channels))
                if len(waiting) >= _AHEAD * count:
                    yield from _results(waiting, half=True)
            yield from _results(waiting)
        finally:
            # An interrupted check does not first read what is left.
            pool.shutdown(wait=False, cancel_futures=True)


def _results(waiting: list[Any], *, half: bool = False) -> Iterable[PairFacts]:
    end = len(waiting) // 2 if half else len(waiting)
    ready, waiting[:] = waiting[:end], waiting[end:]
    for future in ready:
        yield future.result()


def _pictures(tally: SplitTally) -> list[FilePair]:
    """Pairs spread over the split, some of those with unknown values among them."""
    wrong = {note.path for note in tally.faults.get("unknown_value", [])[: SAMPLES // 2]}
    chosen = [digests.pair for digests in tally.digests if digests.pair.mask in wrong]
    return chosen + every_nth(tally.labelled, SAMPLES - len(chosen))


def _missing_splits(description: DataDescription) -> list[Finding]:
    findings = []
    for split, without in (("train", "nothing can be trained"), ("val", "no score can be had")):
        if split not in description.splits:
            message = f"there is no {split} split: {without}."
            findings.append(Finding(NOTE, "no_split", "", message))
    return findings


class _Bar:
    """A progress bar, or nothing where there is no terminal."""

    def __init__(self, console: Console | None, total: int) -> None:
        self._bar: Progress | None = None
        if console is not None and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task("check", total=total)

    def __enter__(self) -> _Bar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, split: str) -> None:
        """One pair more."""
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=split)


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
    from mmengine.config import Config

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
