"""Images in folders, without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmengine.dataset import Compose
from mmseg.registry import DATASETS
from torch.utils.data import Dataset

from dinov2_pretraining.data.file_list import find_images
from mmseg_eomt.datasets.skipping import (
    FilesInFlight,
    SkippedFiles,
    read_past_bad,
    run_pipeline,
)

ON_ERROR = ("skip", "raise")


@DATASETS.register_module()
class UnlabelledImages(Dataset[Any]):
    """All images of some folders, or of list files; see `find_images`.

    With ``on_error='skip'`` the place of a file that cannot be read is taken by the next one of
    the list that can be; the file is named in the log and counted, and above the share
    ``max_skipped`` (but at least one file) the run ends. With ``'raise'`` the first one ends it.

    Args:
        data (str | Path | Sequence): Folders of images, or list files.
        pipeline (Sequence): Transforms. A sample begins as ``img_path`` and ``sample_idx``.
        on_error (str): ``'skip'`` or ``'raise'``. Defaults to ``'skip'``.
        max_skipped (float): Largest share of files that may be bad, above 0 and below 1. Defaults
            to 0.01.

    Raises:
        FileNotFoundError: If a folder or list file is missing or holds no image.
        ValueError: If an argument is wrong.
    """

    def __init__(
        self,
        data: str | Path | Sequence[str | Path],
        *,
        pipeline: Sequence[dict[str, Any] | Callable[..., Any]],
        on_error: str = "skip",
        max_skipped: float = 0.01,
    ) -> None:
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error is {on_error!r}; allowed are {', '.join(ON_ERROR)}.")
        if not 0 < max_skipped < 1:
            raise ValueError(f"max_skipped is {max_skipped}; give a share above 0 and below 1.")
        if data is None:
            raise ValueError(
                "data is not set: give a folder of images, several, or a list file (.txt)."
            )
        self.files = find_images(data)
        self.pipeline = Compose(pipeline)
        self.skipped: SkippedFiles | None = None
        if on_error == "skip":
            self.skipped = SkippedFiles(len(self.files), max_share=max_skipped, name="data")
        self._in_flight = FilesInFlight()

    @property
    def metainfo(self) -> dict[str, Any]:
        """mmengine asks for it; there are no classes."""
        return {}

    def __len__(self) -> int:
        return len(self.files)

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """The sample before any transform."""
        return {"img_path": self.files[int(idx)], "sample_idx": idx}

    def __getitem__(self, idx: int) -> Any:
        """The sample through the pipeline.

        Raises:
            BadFileError: If a file cannot be used; names it.
            TooManyBadFilesError: If it is one too many.
            RuntimeError: If a step of the pipeline fails; names the image.
        """
        with self._in_flight.reading(idx):
            if self.skipped is None:
                return self._prepare(idx)
            return read_past_bad(idx, read=self._prepare, skipped=self.skipped)[0]

    def files_in_flight(self) -> list[str]:
        """Images that workers are reading, or were reading when they died."""
        return [self.files[index] for index in self._in_flight.indices()]

    def _prepare(self, idx: int) -> Any:
        return run_pipeline(self.pipeline, self.get_data_info(idx))
