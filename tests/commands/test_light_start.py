"""A command imports what it uses: help needs no PyTorch, and neither does looking at data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.apis.tiny import make_data

ROOT = Path(__file__).parents[2]
TOOLS = sorted(
    path
    for folder in (ROOT / "tools", ROOT / "projects" / "dinov2_pretraining" / "tools")
    for path in folder.glob("*.py")
)
HEAVY = "torch mmengine mmcv mmseg mmpretrain timm torchvision transformers scipy matplotlib wandb"
CODE = """
import runpy, sys
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end
loaded = sorted(set(HEAVY.split()) & set(sys.modules))
assert not loaded, loaded
"""


def start(tool: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a tool and checks that nothing heavy was imported."""
    code = f"HEAVY = {HEAVY!r}\nimport sys\nsys.argv = {[str(tool), *arguments]!r}\n{CODE}"
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.stem)
def test_help_imports_nothing_heavy(tool: Path) -> None:
    done = start(tool, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


def test_checking_and_describing_data_import_nothing_heavy(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(data))
    done = start(ROOT / "tools" / "check_dataset.py", str(tmp_path / "data.yaml"), "--json", "-")
    assert "assert not loaded" not in done.stderr, done.stderr
    assert '"findings"' in done.stdout


def test_each_tool_is_one_line_over_its_command() -> None:
    for path in TOOLS:
        if path.stem != "compare":  # an experiment of the project, not a command
            lines = [line for line in path.read_text().splitlines() if line][1:]
            main = f"from mmseg_eomt.commands.{path.stem} import main"
            assert lines == [main, 'if __name__ == "__main__":', "    raise SystemExit(main())"]


SHELLS = """
from mmseg_eomt.commands.light_packages import SHELLS, use_light_packages
use_light_packages()
import sys, timm, mmseg.models, mmseg.datasets.transforms, mmengine.optim
def executed(name): return "__executed__" in vars(sys.modules[name])
assert not [name for name in SHELLS if name in sys.modules and executed(name)]
# Used, they are the packages themselves.
import numpy as np
from scipy.optimize import linear_sum_assignment
rows, columns = linear_sum_assignment(np.eye(3))
assert executed("scipy.optimize") and (rows != columns).all()
import torchvision
assert torchvision.__version__ and executed("torchvision") and torchvision.ops.nms
import transformers
from transformers import EomtConfig
assert transformers.EomtConfig is EomtConfig and EomtConfig().model_type == "eomt"
from mmengine.registry import OPTIMIZERS
import torch
weights = [torch.nn.Parameter(torch.ones(2))]
optimizer = OPTIMIZERS.build(dict(type="Adafactor", params=weights))
assert isinstance(optimizer, transformers.Adafactor)
from mmseg.registry import TRANSFORMS
flip = TRANSFORMS.build(dict(type="Albu", transforms=[dict(type="HorizontalFlip", p=1.0)]))
image = flip({"img": np.arange(24, dtype=np.uint8).reshape(2, 4, 3), "gt_seg_map": None})["img"]
assert (image[:, ::-1].ravel() == np.arange(24)).all()
try:
    torchvision.no_such_name
except AttributeError as error:
    assert "no_such_name" in str(error)
else:
    raise AssertionError
"""


def test_packages_that_nobody_used_yet_are_shells_and_then_themselves() -> None:
    command = [sys.executable, "-W", "ignore", "-c", SHELLS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
