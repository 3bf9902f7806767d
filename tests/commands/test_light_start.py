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
