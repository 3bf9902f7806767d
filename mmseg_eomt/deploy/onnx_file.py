"""ONNX files that are there as a whole or not at all, with their weights beside them if need be."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from mmseg_eomt.deploy.onnx_graph import stored_bytes
from mmseg_eomt.safe_write import sync_folder

LARGEST_FILE = 2**31 - 2**26
"""Bytes of weights that go into the file itself: a protobuf ends at 2 GiB."""

_SMALL = 1024  # tensors below stay in the file: shapes and axes have to
_ALIGNMENT = 4096  # runtimes map the weights into memory by pages


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Make a file and its neighbours in a folder apart, and move them when the block ends well.

    Args:
        path: The file wished for. Its folder is made.

    Yields:
        A path of the same name in a new folder beside it. What else is written there moves, too.

    Raises:
        OSError: If the folder cannot be written to: before the block starts. After an error in
            the block, or in moving, `path` is what it was before.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; give the name of a file in it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    except OSError as error:
        raise OSError(
            error.errno,
            f"{path}: its folder cannot be written to ({error.strerror or error}). Choose another "
            "place, or mend the folder",
        ) from error
    try:
        yield folder / path.name
        _move(folder, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sync_folder(path.parent)


def _move(folder: Path, path: Path) -> None:
    try:
        made = sorted(folder.iterdir(), key=lambda file: file.name == path.name)
        for file in made:
            with open(file, "rb+") as opened:
                os.fsync(opened.fileno())
        if len(made) > 1:
            path.unlink(missing_ok=True)  # never the old file with new weights beside it
        for file in made:
            os.replace(file, path.with_name(file.name))
        if len(made) == 1:
            data_file(path).unlink(missing_ok=True)  # of an older, larger model
    except OSError as error:
        raise _not_written(path, error) from error


def data_file(path: Path) -> Path:
    """Where the weights of a model that is too large for one file lie."""
    return path.with_name(f"{path.name}.data")


def write_model(path: Path, model: onnx.ModelProto) -> None:
    """Write a model; one with more than `LARGEST_FILE` bytes of weights as file and `data_file`.

    Args:
        path: The file.
        model: The model. Weights that go beside the file are moved out of it.
    """
    try:
        _write(path, model)
    except OSError as error:
        raise _not_written(path, error) from error


def _write(path: Path, model: onnx.ModelProto) -> None:
    if stored_bytes(model) > LARGEST_FILE:
        with open(data_file(path), "wb") as file:
            for tensor in model.graph.initializer:
                if len(tensor.raw_data) < _SMALL:
                    continue
                file.write(b"\0" * (-file.tell() % _ALIGNMENT))
                place = {
                    "location": data_file(path).name,
                    "offset": str(file.tell()),
                    "length": str(len(tensor.raw_data)),
                }
                file.write(tensor.raw_data)
                tensor.ClearField("raw_data")
                tensor.data_location = TensorProto.EXTERNAL
                for key, value in place.items():
                    tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


def _not_written(path: Path, error: OSError) -> OSError:
    return OSError(
        error.errno,
        f"{path}: could not be written ({error.strerror or error}). What was there before is "
        "still there. Free some space or choose another place, and export again",
    )
