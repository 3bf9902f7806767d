"""One's own images and masks in folders, checked before training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from mmseg_eomt.datasets.data_description import load_data
from mmseg_eomt.datasets.file_pairs import (
    FilePair,
    check_headers,
    collect_faults,
    every_nth,
    find_pairs,
    header_faults,
)
from mmseg_eomt.datasets.label_table import IGNORED
from mmseg_eomt.datasets.skipping import (
    FilesInFlight,
    SkippedFiles,
    read_past_bad,
    run_pipeline,
    without_labels,
)
from mmseg_eomt.errors import BadFileError
from mmseg_eomt.images.reading import read_image, read_mask

# mmseg's tools and its inferencer look for these names in a pipeline, so configs may use them;
# this dataset's files are read by its own rules either way.
_OWN_READERS = {"LoadImageFromFile": "LoadFolderImage", "LoadAnnotations": "LoadFolderAnnotations"}
# Its labels are bytes, which the stock step would widen eightfold.
_STOCK_PACKING, _OWN_PACKING = "PackSegInputs", "PackByteInputs"


@DATASETS.register_module()
class FolderSegDataset(BaseSegDataset):  # type: ignore[misc]
    """Images and masks of equal stem in folders, with classes by id.

    The meta information holds ``classes``, ``palette``, ``class_ids`` (the user's ids by
    internal id) and ``image_roots``. Everything that names and headers can tell is checked at
    construction, and a sample of the masks is read.

    ``LoadImageFromFile`` and ``LoadAnnotations`` in ``pipeline`` stand for `LoadFolderImage` and
    `LoadFolderAnnotations`, ``PackSegInputs`` for `PackByteInputs`.

    Args:
        data (dict | str): What `load_data` reads.
        split (str): ``'train'``, ``'val'`` or ``'test'``. Defaults to ``'train'``.
        pipeline (Sequence): Transforms. Defaults to ().
        in_channels (int): Channels of the images, as the model takes them. Defaults to 3.
        num_checked_masks (int): Masks read at construction to find unknown values, spread
            evenly; 0 for none, and then no image is read either. Defaults to 32.
        indices (int | Sequence[int], optional): Use these samples only. Defaults to None.
        serialize_data (bool): Share the file list between workers. Defaults to True.
        test_mode (bool): As in mmengine. Defaults to False.
        lazy_init (bool): Read the description only, no folder. Defaults to False.

    Raises:
        FileNotFoundError: If a folder, an image or a mask is missing.
        ValueError: If the description or a file is wrong.
    """

    def __init__(
        self,
        data: Mapping[str, Any] | str | Path,
        *,
        split: str = "train",
        pipeline: Sequence[dict[str, Any] | Callable[..., Any]] = (),
        in_channels: int = 3,
        num_checked_masks: int = 32,
        indices: int | Sequence[int] | None = None,
        serialize_data: bool = True,
        test_mode: bool = False,
        lazy_init: bool = False,
    ) -> None:
        self.description = load_data(data, check_splits=[] if lazy_init else [split])
        self.split = split
        self.folders = self.description.folders(split)
        self.label_table = self.description.label_table()
        self.in_channels = in_channels
        self.num_checked_masks = num_checked_masks
        self.skipped: SkippedFiles | None = None
        self._in_flight = FilesInFlight()
        super().__init__(
            metainfo={
                "classes": self.description.classes,
                "palette": self.description.palette,
                "class_ids": self.description.class_ids,
                "image_roots": [str(pair.images) for pair in self.folders],
            },
            pipeline=[_own_reader(step, in_channels) for step in pipeline],
            indices=indices,
            serialize_data=serialize_data,
            test_mode=test_mode,
            lazy_init=lazy_init,
            ignore_index=IGNORED,
        )

    def load_data_list(self) -> list[dict[str, Any]]:
        """Finds and checks the files.

        Returns:
            list[dict]: ``img_path`` and ``seg_map_path`` of each sample.
        """
        pairs = [pair for folders in self.folders for pair in find_pairs(folders)]
        if self.description.on_error == "skip":
            self._set_up_skipping(pairs)
        else:
            check_headers(pairs)
            if self.num_checked_masks:
                read_image(pairs[0].image, channels=self.in_channels)
            self._check_labels(pairs, self.num_checked_masks)
        return [
            {
                "img_path": pair.image,
                "seg_map_path": pair.mask,
                "label_map": None,
                "reduce_zero_label": False,
                "seg_fields": [],
            }
            for pair in pairs
        ]

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """The sample's paths, its index and the table for its labels."""
        info: dict[str, Any] = super().get_data_info(idx)
        # Added here, so that the table is not stored once per sample.
        info["label_table"] = self.label_table
        return info

    def prepare_data(self, idx: int) -> Any:
        """The sample at ``idx`` through the pipeline; what `skipping` says if it is bad.

        Raises:
            BadFileError: If a file cannot be used; names it.
            RuntimeError: If a step of the pipeline fails; names the image.
        """
        with self._in_flight.reading(idx):
            if self.skipped is None:
                return self._prepare(idx)
            sample, replaced = read_past_bad(idx, read=self._prepare, skipped=self.skipped)
            if replaced and (self.split != "train" or self.test_mode):
                return without_labels(sample)
            return sample

    def files_in_flight(self) -> list[str]:
        """Images that workers are reading, or were reading when they died."""
        return [self.get_data_info(index)["img_path"] for index in self._in_flight.indices()]

    def _prepare(self, idx: int) -> Any:
        return run_pipeline(self.pipeline, self.get_data_info(idx))

    def _set_up_skipping(self, pairs: Sequence[FilePair]) -> None:
        """Counts what can be seen to be bad already; all samples keep their numbers."""
        self.skipped = SkippedFiles(
            len(pairs),
            max_share=self.description.max_skipped,
            name=f"{self.description.source}: {self.split}",
        )
        for index, fault in enumerate(header_faults(pairs)):
            if fault:
                self.skipped.add(index, BadFileError(fault))

    def check_labels(self, max_files: int | None = None) -> None:
        """Reads masks and looks for values that no class claims.

        Args:
            max_files (int, optional): Read at most so many, spread evenly. Defaults to None:
                all.

        Raises:
            ValueError: Names up to 5 files with the values found and those allowed.
        """
        infos = [super(FolderSegDataset, self).get_data_info(i) for i in range(len(self))]
        pairs = [FilePair(info["img_path"], info["seg_map_path"]) for info in infos]
        self._check_labels(pairs, len(pairs) if max_files is None else max_files)

    def _check_labels(self, pairs: Sequence[FilePair], max_files: int) -> None:
        def check(pair: FilePair) -> None:
            self.label_table(read_mask(pair.mask), pair.mask)

        sample = every_nth(pairs, max_files) if max_files else []
        faults = collect_faults(check, sample)
        if faults:
            more = f"\n... and {len(faults) - 5} more" if len(faults) > 5 else ""
            raise ValueError(
                f"{len(faults)} of the {len(sample)} masks checked are wrong:\n"
                + "\n".join(faults[:5])
                + more
            )


def _own_reader(step: Any, channels: int) -> Any:
    """A pipeline step with stock readers and packing replaced, nested ones too (TestTimeAug)."""
    if isinstance(step, (list, tuple)):
        return [_own_reader(part, channels) for part in step]
    if not isinstance(step, Mapping):
        return step
    if step.get("type") == _OWN_READERS["LoadImageFromFile"]:
        return {"channels": channels, **step}
    if step.get("type") == _STOCK_PACKING:
        return {**step, "type": _OWN_PACKING}
    own = _OWN_READERS.get(str(step.get("type")))
    if own is None:
        return {
            key: _own_reader(v, channels) if key == "transforms" else v for key, v in step.items()
        }
    options = sorted(key for key in step if key != "type")
    if options:
        raise ValueError(
            f"FolderSegDataset: pipeline: {step['type']} has the options {options}, but files "
            f"are read by {own}, which has none. Remove them."
        )
    return _own_reader({"type": own}, channels)
