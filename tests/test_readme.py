"""The README holds: its commands parse and name files that exist, its Python runs."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from PIL import Image

from mmseg_eomt.datasets.data_description import load_data
from tests.golden import MAKE_DATASET

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def _commands() -> list[str]:
    watching = (ROOT / "docs/watching.md").read_text(encoding="utf-8")
    blocks = _blocks("shell") + _blocks("shell", watching)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.split("\n")]
    # Without the variables before a command.
    return [re.sub(r"^([A-Z_]+=\S+ )+", "", line) for line in lines if line]


TOOLS = [
    c for c in dict.fromkeys(_commands()) if re.match(r"(python|bash) (projects/\w+/)?tools/", c)
]
OPTIONS = re.findall(r"^\|[^|]+\| `(--[^`]+)`", TEXT, re.MULTILINE)


@pytest.mark.parametrize("command", TOOLS + [f"python tools/train.py C.py {o}" for o in OPTIONS])
def test_tool_commands_parse_and_name_files_that_exist(command: str) -> None:
    _, tool, *arguments = shlex.split(command.replace("`, `", " "))
    assert (ROOT / tool).is_file()
    for argument in arguments:
        if argument.startswith(("configs/", "projects/")):
            assert (ROOT / argument).is_file(), argument
    if tool.endswith(".py"):
        command_of_tool = runpy.run_path(str(ROOT / tool))["main"].__globals__
        args = command_of_tool["parse_args"](arguments)
        if options := getattr(args, "cfg_options", None):
            cfg = Config.fromfile(ROOT / "configs/eomt/dinov3_vits16_folder.py")
            for key in options:
                *parents, _ = key.split(".")
                node = cfg
                for name in parents:  # the place exists; its last name may be new there
                    node = node[int(name)] if name.isdigit() else node[name]


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {c.split()[-1] for c in _commands() if c.startswith("make ")}
    assert {"test", "quickstart"} <= targets
    for target in targets - {"..."}:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target


def test_yaml_example_is_a_data_description() -> None:
    (block,) = _blocks("yaml")
    description = load_data(yaml.safe_load(block), check_splits=())
    assert list(description.classes) == ["road", "vehicle"]


def test_python_example_trains_and_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As printed, but for one step, without downloads and at a size for a CPU."""
    example = next(block for block in _blocks("python") if "train_semantic_segmentation" in block)
    for printed, small in (
        ("steps=5000", "steps=1, num_workers=0, precision='fp32'"),
        ("batch_size=16", "batch_size=2"),
        ('"timm", "num_queries": 100', 'None, "num_queries": 10, "num_points": 64'),
        ('"image_size": 512', '"image_size": 64'),
    ):
        assert example.count(printed) == 1, printed
        example = example.replace(printed, small)
    monkeypatch.chdir(tmp_path)
    make = runpy.run_path(str(MAKE_DATASET))["main"]
    make(["my_data", "--images", "2", "--val", "1", "--size", "96x80"])
    image = next(Path("my_data/val/images").iterdir())
    example = example.replace("my_data/val/images/00000.png", str(image))
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    with Image.open(image) as picture:
        assert names["mask"].shape == (picture.height, picture.width)  # type: ignore[attr-defined]
    assert Path("overlay.png").is_file()


def test_published_figures_are_those_of_the_configs() -> None:
    rows = re.findall(r"^\| (`[^|]+) \| ([\d., ]+) \| ([^|]+) \|", TEXT, re.MULTILINE)
    checked = 0
    for configs, figures, publisher in rows:
        names = re.findall(r"`([^`]+)`", configs)
        names = [n if "_" in n else names[0].replace("vits16", n) for n in names]
        for name, figure in zip(names, figures.split(","), strict=True):
            text = (ROOT / "configs/eomt" / f"{name}.py").read_text(encoding="utf-8")
            assert f"{figure.strip()} by {'the ' if 'authors' in publisher else ''}{publisher}" in (
                " ".join(text.split())
            ), name
            checked += 1
    assert checked == 12
