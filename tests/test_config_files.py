"""Configs of the package are found by name, from anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from mmseg_eomt.config_files import config_path, config_root


def test_a_config_is_found_by_its_name() -> None:
    path = Path(config_path("_base_/default_runtime.py"))
    assert path.is_absolute() and path.is_file()


def test_an_unknown_name_lists_its_neighbours() -> None:
    with pytest.raises(FileNotFoundError, match=r"eomt/none\.py.*eomt/dinov3_vits16_ade20k\.py"):
        config_path("eomt/none.py")
    with pytest.raises(FileNotFoundError, match=r"eomt/dinov3_vits16_ade20k\.py"):
        config_path("nowhere/none.py")


def test_a_config_elsewhere_builds_on_one_of_ours(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "_base_ = __import__('mmseg_eomt').config_path('eomt/dinov3_vits16_folder.py')\n"
        "train_cfg = dict(max_iters=7)\n"
    )
    config = Config.fromfile(own)
    base = Config.fromfile(config_root() / "eomt" / "dinov3_vits16_folder.py")
    assert config.model == base.model
    assert config.train_cfg.max_iters == 7
    assert config.train_cfg.type == base.train_cfg.type
