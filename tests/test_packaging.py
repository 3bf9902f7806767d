"""The wheel holds all that an installation needs."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]

# Runs in the fresh environment, from an empty folder.
CHECK = """
import pathlib, mmseg_eomt
from mmengine.config import Config
package = pathlib.Path(mmseg_eomt.__file__).parent
assert (package / "py.typed").is_file()
for path in sorted((package / ".mim").rglob("*")):
    if path.is_file() and path.suffix != ".pyc":
        print(path.relative_to(package / ".mim").as_posix())
pathlib.Path("own.py").write_text(
    "_base_ = __import__('mmseg_eomt').config_path('eomt/dinov3_vits16_folder.py')"
)
config = Config.fromfile("own.py")
from mmseg_eomt.apis.pretraining import load_recipe
recipe = load_recipe("dinov2/vits14")
import dinov2_pretraining
assert pathlib.Path(dinov2_pretraining.__file__).is_relative_to(package / ".mim")
assert recipe.model.type == "DINOv2Pretraining"
print("IMPORTED", package, config.model.type)
"""


def run(*command: str | Path, cwd: Path) -> str:
    # Neither the clone nor pytest's own settings may help the new environment.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_an_installed_wheel_imports_and_brings_its_configs_and_tools(tmp_path: Path) -> None:
    source = tmp_path / "source"  # built from a copy, so that the clone stays clean
    tracked = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, source, cwd=tmp_path)
    (wheel,) = tmp_path.glob("mmseg_eomt-*.whl")
    assert list(tmp_path.glob("mmseg_eomt-*.tar.gz"))

    # A new environment that borrows the dependencies of this one, but no .pth file of it, so
    # that an editable mmseg_eomt is out of reach.
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    purelib = Path(run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=tmp_path))
    (Path(str(purelib).strip()) / "borrowed.pth").write_text(sysconfig.get_path("purelib"))

    empty = tmp_path / "empty"
    empty.mkdir()
    lines = run(python, "-c", CHECK, cwd=empty).splitlines()
    folders = ("configs/", "tools/", "projects/")
    shipped = {line for line in lines if line.startswith(folders)}
    assert shipped == {name for name in tracked if name.startswith(folders)}
    assert f"IMPORTED {tmp_path / 'env'}" in lines[-1]
    assert lines[-1].endswith("EoMTSegmentor")

    # A project's tool finds its package in the installation.
    shipped_here = Path(lines[-1].split()[1]) / ".mim" / "projects" / "dinov2_pretraining"
    (empty / "images").mkdir()
    Image.new("RGB", (8, 8)).save(empty / "images" / "one.png")
    config = shipped_here / "configs" / "dinov2_vits14_small.py"
    tool = (python, shipped_here / "tools" / "pretrain.py", config, "--data", "images")
    assert "1 in images" in run(*tool, "--dry-run", cwd=empty)
