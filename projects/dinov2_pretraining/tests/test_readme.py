"""The project's README holds: its commands and its Python run, its figures are those of configs."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from data.pictures import write_pictures
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from pretraining_toys import ARCH, CONFIGS, GLOBAL, HEAD, LOCAL, PATCH
from safetensors.torch import load_file

from mmseg_eomt.checkpoints.weights_file import read_weights
from tests.apis.tiny import make_data

PROJECT = CONFIGS.parent
ROOT = PROJECT.parents[1]
TEXT = (PROJECT / "README.md").read_text(encoding="utf-8")
SHELL = re.findall(r"```shell\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [line for block in SHELL for line in block.splitlines() if line]
# What makes the printed runs small enough for a test.
TINY: dict[str, Any] = {
    "model.backbone": {"_delete_": True, "type": "DINOv2", "arch": ARCH, "image_size": GLOBAL},
    **{f"model.head.{name}": value for name, value in HEAD.items()},
    "train_dataloader.collate_fn.patch_size": PATCH,
    "train_dataloader.num_workers": 0,
    "train_dataloader.persistent_workers": False,
    "train_cfg.global_batch_size": 4,
    "train_cfg.max_iters": 2,
    "train_dataloader.dataset.pipeline.1.global_size": GLOBAL,
    "train_dataloader.dataset.pipeline.1.local_size": LOCAL,
    "default_hooks.checkpoint.interval": 2,
}


def commands_of(tool: str) -> list[str]:
    return [command for command in COMMANDS if f"tools/{tool}" in command]


def load_tool(command: str) -> tuple[dict[str, Any], list[str]]:
    """The tool of a command, which must exist, and its arguments, of which the config must."""
    words = shlex.split(command)
    place = next(number for number, word in enumerate(words) if word.endswith(".py"))
    arguments = [str(ROOT / w) if "configs/" in w else w for w in words[place + 1 :]]
    assert all(Path(argument).is_file() for argument in arguments if "configs/" in argument)
    return runpy.run_path(str(ROOT / words[place]))["main"].__globals__, arguments


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the README speaks of."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "images" / "nested", 8)
    for name in ("one", "two"):
        write_pictures(tmp_path / "labelled" / name, 5)
    return tmp_path


def test_the_route_from_images_to_eomt_runs_as_printed(workplace: Path) -> None:
    small = [c for c in commands_of("pretrain.py") if "vits14_small" in c or "scratch" in c]
    assert len(small) == 4
    for command in small:
        tool, arguments = load_tool(command)
        args = tool["parse_args"](arguments)
        if not args.dry_run:
            args.cfg_options = {**TINY, "train_cfg.max_iters": 3 if args.resume else 2}
        tool["pretrain"](args)
    assert sorted(path.name for path in Path("runs").iterdir()) == ["pretrained", "scratch"]
    out = Path("runs/pretrained")
    assert (out / "iter_3.pth").is_file()
    assert [line["step"] for line in logged(out) if "knn_accuracy" in line][:3] == [0, 1, 2]

    (command,) = commands_of("train.py")
    Path("data.yaml").write_text(yaml.safe_dump(make_data(workplace / "data")))
    tool, arguments = load_tool(command)
    args = tool["parse_args"]([*arguments, "--image-size", "32", "--no-validate"])
    assert args.backbone_weights == str(out / "exported" / "backbone.safetensors")
    args.cfg_options = {
        "model.backbone.arch": {"_delete_": True, **ARCH},
        "model.backbone.num_joint_blocks": 1,
        "model.decode_head.num_queries": 4,
        "model.decode_head.loss_decode.num_points": 32,
        "train_dataloader.num_workers": 0,
        "train_dataloader.persistent_workers": False,
        "train_cfg.max_iters": 3,
        "train_cfg.global_batch_size": 2,
        "optim_wrapper.optimizer.lr": 1e-5,
        "default_hooks.checkpoint.interval": 10,
    }
    tool["train"](args)
    (run,) = Path("work_dirs").iterdir()
    trained = read_weights(run / "exported" / "last.safetensors")[1]
    pretrained = load_file(out / "exported" / "backbone.safetensors")
    weights = [name for name in pretrained if name.endswith(".attn.qkv.weight")]
    assert len(weights) == ARCH["depth"]
    for name in weights:
        moved = float((trained[name] - pretrained[name]).abs().max())
        # Three small steps away from the export, not from something else.
        assert 0.0 < moved < 1e-4, name


def logged(out: Path) -> list[dict[str, Any]]:
    """All log lines of a run, over its resumes."""
    paths = sorted(out.glob("*/vis_data/scalars.json"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def test_the_command_for_8_gpus_resolves(workplace: Path) -> None:
    (command,) = [c for c in COMMANDS if c.startswith("torchrun --nproc_per_node=8 ")]
    tool, arguments = load_tool(command)
    cfg = tool["resolve"](tool["parse_args"](arguments))
    assert cfg.launcher == "pytorch"
    # The batch can be spread over the processes that the command starts.
    assert cfg.train_cfg.global_batch_size % (8 * cfg.train_dataloader.batch_size) == 0


def test_the_comparison_parses() -> None:
    (command,) = commands_of("compare.py")
    tool, arguments = load_tool(command)
    args = tool["parse_args"](arguments)
    assert args.starts == ["timm", "runs/pretrained/exported/backbone.safetensors"]
    assert len(COMMANDS) == 7


def test_the_python_example_runs(workplace: Path) -> None:
    (example,) = re.findall(r"```python\n(import mmseg_eomt\n.*?)```", TEXT, re.DOTALL)
    for printed, tiny in (
        ("steps=2000", "steps=1, num_workers=0"),
        (
            "batch_size=32",
            f"batch_size=4, model_args=dict(arch={ARCH}, image_size={GLOBAL}, "
            f"backbone_weights=None), method_args={HEAD}, "
            f"transform_args=dict(global_size={GLOBAL}, local_size={LOCAL})",
        ),
    ):
        assert example.count(printed) == 1, printed
        example = example.replace(printed, tiny)
    exec(compile(example, "README.md", "exec"), {})
    assert Path("runs/called/exported/backbone.safetensors").is_file()


def test_figures_are_those_of_the_configs() -> None:
    rows = re.findall(r"^\| `(dinov2_\S+)` \| .+? \| ([\d,]+) \| ([\d,]+) \| (.+) \|", TEXT, re.M)
    assert len(rows) == 3
    for name, *cells in rows:
        batch, steps = (int(cell.replace(",", "")) for cell in cells[:2])
        for path in CONFIGS.glob(f"{name}.py"):
            train = Config.fromfile(path).train_cfg
            assert (train.global_batch_size, train.max_iters) == (batch, steps)
        seen = cells[2].replace(" million", "000000").replace(",", "")
        assert int(seen) == batch * steps

    init_default_scope("mmseg")
    for arch, gigabytes in (("vits14", 0.9), ("vitl14", 6.5)):
        with torch.device("meta"):
            model = MODELS.build(Config.fromfile(CONFIGS / f"dinov2_{arch}_8gpu.py").model)
        count = sum(parameter.numel() for parameter in model.student.parameters())
        assert round(count * 20 / 1e9, 1) == gigabytes
    assert "0.9 GB for ViT-S/14" in " ".join(TEXT.split())
    assert "6.5 GB for ViT-L/14" in " ".join(TEXT.split())
