"""Naming the files that a loader's worker was reading when it died."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmseg_eomt.datasets.skipping import files_in_flight

_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


@contextmanager
def naming_files(runner: Any) -> Iterator[None]:
    """Adds the files to torch's error about a worker that crashed, which names none.

    Raises:
        RuntimeError: With the files, in place of torch's.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        loaders = [getattr(runner, f"_{name}", None) for name in _LOADERS]
        files = [
            path for loader in loaders for path in files_in_flight(getattr(loader, "dataset", None))
        ]
        if not files:
            raise
        raise RuntimeError(
            f"A worker that reads images died while it or another worker was reading: "
            f"{', '.join(sorted(set(files)))}. Look at these files; a worker also dies when memory "
            f"runs out (num_workers=0 shows which file it is). {error}"
        ) from error
