"""The compat module acts where a break is present, and leaves everything else alone."""

from __future__ import annotations

import importlib.util
import io
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import mmcv
import mmseg
import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from packaging.version import Version

from mmseg_eomt import compat

COMPILED = importlib.util.find_spec("mmcv._ext") is not None
UPSTREAM = Version(mmseg.__version__) <= Version("1.2.2")
python_ops = pytest.mark.skipif(
    COMPILED or not UPSTREAM, reason="mmcv.ops needs no mend in this environment"
)


def test_a_second_call_finds_nothing_to_do() -> None:
    assert compat.apply() == []


def test_every_entry_says_for_what_and_until_when() -> None:
    for entry in compat.ENTRIES:
        assert entry.package and entry.problem and entry.until


def test_heads_and_losses_of_mmseg_import() -> None:
    from mmseg.models.decode_heads import Mask2FormerHead, SideAdapterCLIPHead
    from mmseg.models.losses import FocalLoss

    assert Mask2FormerHead and SideAdapterCLIPHead and FocalLoss


@python_ops
def test_point_sample_is_mmcvs_own_and_right() -> None:
    from mmcv.ops import point_sample

    assert point_sample.__module__ == "mmcv.ops.point_sample"
    image = torch.arange(16.0).view(1, 1, 4, 4)
    corner_and_centre = torch.tensor([[[0.125, 0.125], [0.5, 0.5]]])
    assert point_sample(image, corner_and_centre).flatten().tolist() == [0.0, 7.5]


@python_ops
def test_compiled_operators_are_missing_in_the_way_mmseg_expects() -> None:
    import mmcv.ops
    from mmseg.models.losses.focal_loss import _sigmoid_focal_loss

    with pytest.raises(ModuleNotFoundError, match=r"mmcv\.ops\.nms needs mmcv's compiled"):
        from mmcv.ops import nms  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match="sigmoid_focal_loss"):
        _sigmoid_focal_loss(torch.zeros(1, 1), torch.zeros(1))
    assert not hasattr(mmcv.ops, "__all__")


@python_ops
def test_a_broken_build_of_mmcv_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        if name == "mmcv.ops":
            raise ImportError("undefined symbol: _ZN3c10")
        return mmseg

    monkeypatch.setattr(compat.importlib, "import_module", broken)
    with pytest.raises(ImportError, match="undefined symbol"):
        compat._ops_not_compiled()


def checkpoint(content: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    return buffer


def test_a_history_with_numpy_values_loads_without_full_unpickling() -> None:
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    history.update(6)
    content = {"loss": history, "best": np.float64(3), "ids": np.arange(3), "ok": np.bool_(True)}
    loaded = torch.load(checkpoint(content), weights_only=True)
    assert loaded["loss"].mean() == 3.0
    assert loaded["loss"].statistics("max") == 6.0
    assert loaded["best"] == 3.0 and loaded["ids"].tolist() == [0, 1, 2]


def test_a_file_written_under_numpy_1_loads() -> None:
    buffer = checkpoint({"best": np.float64(3), "log": np.ones(2)})
    old = io.BytesIO(_rename_in_archive(buffer.getvalue(), b"numpy._core", b"numpy.core"))
    loaded = torch.load(old, weights_only=True)
    assert loaded["best"] == 3.0 and loaded["log"].tolist() == [1.0, 1.0]


def _rename_in_archive(archive: bytes, old: bytes, new: bytes) -> bytes:
    """Rename a module inside the pickle of a file written by torch.save."""
    import zipfile

    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):
                data = data.replace(b"c" + old, b"c" + new)
                assert b"c" + new in data
            copy.writestr(name, data)
    return target.getvalue()


class Reaches:
    """Pickles as getattr(owner, name)."""

    def __init__(self, owner: object, name: str) -> None:
        self.reduced = (getattr, (owner, name))

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize("name", ["__init__", "__class__", "update"])
def test_getattr_in_a_checkpoint_reaches_the_statistics_only(name: str) -> None:
    torch.load(checkpoint(Reaches(HistoryBuffer, "mean")), weights_only=True)
    with pytest.raises((ValueError, pickle.UnpicklingError), match="only the statistics"):
        torch.load(checkpoint(Reaches(HistoryBuffer, name)), weights_only=True)


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        compat.importlib.util, "find_spec", lambda name: None if name == "ftfy" else find_spec(name)
    )
    with pytest.raises(ImportError, match=r"'ftfy'.*pip install 'mmseg_eomt\[openmmlab\]'"):
        compat.check_packages()


def test_a_package_that_is_too_old_is_named_with_its_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mmcv, "__version__", "2.0.0")
    with pytest.raises(ImportError, match=r"mmcv>=2\.1\.0.*found 2\.0\.0.*pip install"):
        compat.check_packages()


def test_two_families_in_one_environment_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "_is_installed", lambda distribution: True)
    with pytest.warns(UserWarning, match="are both installed and overwrite"):
        compat.check_packages()


@pytest.mark.slow
@pytest.mark.skipif(not UPSTREAM, reason="onedl-mmsegmentation does not assert versions")
def test_an_mmcv_that_mmseg_refuses_is_an_import_error(tmp_path: Path) -> None:
    code = (
        "import mmcv; mmcv.__version__ = '2.2.0'\n"
        "try:\n    import mmseg_eomt\n"
        "except ImportError as error:\n    print(error)\n"
    )
    root = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert "MMCV==2.2.0 is used but incompatible" in run.stdout
    assert "pip install 'mmseg_eomt[openmmlab]'" in run.stdout
