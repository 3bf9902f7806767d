"""Configs work where they are not in a clone: copied, or as the base of a user's own config."""

from __future__ import annotations

import shutil
from pathlib import Path

from mmengine.config import Config

from mmseg_eomt.config_files import config_path
from tests.configs.published import ROOT

OWN_CHANGES = "\ntrain_cfg = dict(max_iters=100)\n"


def test_own_config_by_absolute_path(tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    base = (ROOT / "eomt" / "dinov3_vits16_folder.py").as_posix()
    own.write_text(f"_base_ = {base!r}{OWN_CHANGES}")
    cfg = Config.fromfile(own)
    assert cfg.train_cfg.max_iters == 100
    assert cfg.model.backbone.arch == "vits16"


def test_own_config_by_name_of_the_packaged_one(tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    name = "eomt/dinov3_vits16_cityscapes-1024.py"
    own.write_text(f"_base_ = {config_path(name)!r}{OWN_CHANGES}")
    cfg = Config.fromfile(own)
    assert cfg.train_cfg.max_iters == 100
    # Values that the base took from its own base came along.
    assert cfg.model.backbone.image_size == (1024, 1024)


def test_copied_tree_reads_nothing_outside_itself(tmp_path: Path) -> None:
    copy = tmp_path / "configs"
    shutil.copytree(ROOT, copy)
    for path in sorted((copy / "eomt").glob("*.py")):
        original = Config.fromfile(ROOT / "eomt" / path.name)
        copied = Config.fromfile(path)
        assert copied.to_dict() == original.to_dict()
    for path in copy.rglob("*.py"):
        assert "::" not in path.read_text()  # no other package's configs


def test_dumped_config_reads_back(tmp_path: Path) -> None:
    """A run writes its config beside its weights; it must be readable from there."""
    cfg = Config.fromfile(ROOT / "eomt" / "dinov2_vitl14_cityscapes-1024-official.py")
    cfg.dump(tmp_path / "run.py")
    assert Config.fromfile(tmp_path / "run.py").to_dict() == cfg.to_dict()
