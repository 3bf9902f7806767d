"""The command line tools, run as users run them."""

from __future__ import annotations

import gzip
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from PIL import Image

from mmseg_eomt.apis.inference import build_segmentor
from mmseg_eomt.checkpoints.weights_file import save_weights
from tests.apis.tiny import ARCH, CLASSES, make_data, tiny_header

ROOT = Path(__file__).parents[2]
OPTIONS = [
    "train_cfg.max_iters=3",
    "train_cfg.global_batch_size=2",
    "train_dataloader.num_workers=0",
    "train_dataloader.persistent_workers=False",
    "val_dataloader.num_workers=0",
    "val_dataloader.persistent_workers=False",
    "test_dataloader.num_workers=0",
    "test_dataloader.persistent_workers=False",
    "train_dataloader.dataset.pipeline.5.size=32",
    "val_dataloader.dataset.pipeline.1.size=32",
    "test_dataloader.dataset.pipeline.1.size=32",
]


def tool(name: str) -> ModuleType:
    return importlib.import_module(f"mmseg_eomt.commands.{name}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with data, a config and weights that fit both."""
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(make_data(tmp_path / "data")))
    base = ROOT / "configs" / "eomt" / "dinov3_vits16_folder.py"
    (tmp_path / "tiny.py").write_text(
        f"_base_ = [{str(base)!r}]\n"
        f"model = dict(backbone=dict(arch=dict(_delete_=True, **{ARCH!r}), image_size=32,\n"
        "    num_joint_blocks=1, pretrained=None), decode_head=dict(num_queries=4,\n"
        "    num_upscale_blocks=1, loss_decode=dict(num_points=32)))\n"
    )
    save_weights(tmp_path / "w.safetensors", build_segmentor(tiny_header()), tiny_header())
    other = tiny_header(classes=("a", "b", "c"))
    save_weights(tmp_path / "other.safetensors", build_segmentor(other), other)
    return tmp_path


def test_dry_run_prints_the_run_and_makes_no_folder(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(folder / "tiny.py"), "--data", str(folder / "data.yaml"), "--dry-run"]
    arguments += ["--work-dir", str(folder / "run"), "--debug", "--cfg-options", *OPTIONS]
    assert tool("train").main(arguments) == 0
    text = capsys.readouterr().out
    for word in ("3: road", "backbone warm-up", "joint block", "weight decay", "1 micro-batches"):
        assert word in text
    assert not (folder / "run").exists()


def test_dry_run_says_what_a_start_takes_over(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # rich folds no cell
    old = tiny_header(classes=("tree", "boat", "Sky"), num_queries=7)
    save_weights(folder / "old.safetensors", build_segmentor(old), old)
    arguments = [str(folder / "tiny.py"), "--data", str(folder / "data.yaml"), "--dry-run"]
    arguments += ["--checkpoint", str(folder / "old.safetensors"), "--reuse-class-head", "by_name"]
    assert tool("train").main([*arguments, "--ema", "--debug", "--cfg-options", *OPTIONS]) == 0
    text = capsys.readouterr().out
    for word in ("4 taken, 3 left out", "1 of 3 classes", "file has 'Sky'", "EMA"):
        assert word in text, word


def test_test_and_predict_write_what_they_promise(folder: Path) -> None:
    arguments = [str(folder / "tiny.py"), str(folder / "w.safetensors")]
    arguments += ["--data", str(folder / "data.yaml"), "--work-dir", str(folder / "test")]
    arguments += ["--out", str(folder / "maps"), "--debug", "--cfg-options", *OPTIONS]
    assert tool("test").main(arguments) == 0
    assert len(list((folder / "maps").rglob("*.png"))) == 2
    images = folder / "data" / "val" / "images"
    arguments = [str(folder / "w.safetensors"), str(images), "--out", str(folder / "out")]
    assert tool("predict").main([*arguments, "--device", "cpu", "--debug"]) == 0
    mask = np.asarray(Image.open(folder / "out" / "masks" / "0.png"))
    assert mask.dtype == np.uint16  # an id is above 255
    assert set(np.unique(mask)) <= set(CLASSES)
    assert (folder / "out" / "overlays" / "1.png").is_file()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("train", "no_config.py", "no such config file"),
        ("train", "{f}/tiny.py", "--data DATA.yaml"),
        ("train", "{f}/tiny.py --data {f}/none.yaml", "no such data file"),
        ("train", "{c}/dinov3_vits16_ade20k.py", "no such folder"),
        ("train", "{c}/dinov3_vits16_ade20k.py --data {f}/data.yaml", "take a *_folder config"),
        (
            "train",
            "{f}/tiny.py --data {f}/data.yaml --cfg-options model.decode_head.num_classes=19",
            "num_classes is 19, but the dataset has 3",
        ),
        (
            "train",
            "{f}/tiny.py --data {f}/data.yaml --cfg-options train_cfg.global_batch_size=10 "
            "train_dataloader.batch_size=4",
            "set it to one of",
        ),
        ("train", "{f}/tiny.py --data {f}/data.yaml --resume {f}/w.safetensors", "w.safetensors"),
        (
            "train",
            "{f}/tiny.py --data {f}/data.yaml --checkpoint {f}/other.safetensors "
            "--reuse-class-head",
            "needs the same classes",
        ),
        (
            "train",
            "{f}/tiny.py --data {f}/data.yaml --reuse-class-head by_name",
            "add checkpoint (--checkpoint PATH)",
        ),
        (
            "train",
            "{f}/tiny.py --data {f}/data.yaml --checkpoint {f}/none.safetensors",
            "no such weights file",
        ),
        (
            "train",
            "{f}/tiny.py --data {f}/data.yaml --checkpoint {f}/tiny.py",
            "tools/convert_checkpoint.py",
        ),
        ("train", "{f}/tiny.py --data {f}/data.yaml --ema 2", "ema is 2.0"),
        (
            "train",
            "{f}/tiny.py --data {f}/data.yaml --profile 9 3 --cfg-options train_cfg.max_iters=10",
            "ends at step 11, but this run makes steps 1 to 10",
        ),
        ("train", "{f}/tiny.py --data {f}/data.yaml --backbone-weights {f}/no.pth", "no.pth"),
        ("test", "{f}/tiny.py {f}/none.pth --data {f}/data.yaml", "no such weights file"),
        ("test", "{f}/tiny.py {f}/tiny.py --data {f}/data.yaml", "not a readable checkpoint"),
        ("test", "{f}/tiny.py {f}/other.safetensors --data {f}/data.yaml", "trained for 3"),
        ("predict", "{f}/w.safetensors {f}/none.jpg --out {f}/o", "no such image or folder"),
        ("predict", "{f}/w.safetensors {f}/data/val/images --out {f}/o --opacity 2", "opacity"),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(
    name: str, arguments: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = arguments.format(f=folder, c=ROOT / "configs" / "eomt").split()
    assert tool(name).main(filled) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_predict_refuses_to_overwrite_its_inputs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = folder / "out" / "masks"
    masks.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(masks / "a.png")
    before = (masks / "a.png").read_bytes()
    arguments = [str(folder / "w.safetensors"), str(masks), "--out", str(folder / "out")]
    assert tool("predict").main(arguments) == 2
    assert "overwrite an input" in capsys.readouterr().err
    assert (masks / "a.png").read_bytes() == before


def test_profile_is_written_beside_the_run(folder: Path) -> None:
    arguments = [str(folder / "tiny.py"), "--data", str(folder / "data.yaml"), "--no-validate"]
    arguments += ["--work-dir", str(folder / "run"), "--profile", "2", "1", "--debug"]
    assert tool("train").main([*arguments, "--cfg-options", *OPTIONS]) == 0
    found = sorted(path.name for path in (folder / "run" / "profile").iterdir())
    assert found == ["steps_2-2_rank0.trace.json.gz", "steps_2-2_rank0.txt"]
    with gzip.open(folder / "run" / "profile" / found[0], "rt") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"ProfilerStep#2", "aten::scaled_dot_product_attention"} <= names
    assert "ProfilerStep#1" not in names and "ProfilerStep#3" not in names


@pytest.mark.slow
def test_training_as_a_process_of_its_own(folder: Path) -> None:
    command = [sys.executable, "tools/train.py", str(folder / "tiny.py"), "--work-dir"]
    command += [str(folder / "run"), "--data", str(folder / "data.yaml")]
    command += ["--cfg-options", *OPTIONS]
    subprocess.run(command, cwd=ROOT, check=True, env={"PYTHONPATH": str(ROOT)}, timeout=600)
    assert (folder / "run" / "exported" / "best.safetensors").is_file()


@pytest.mark.parametrize("script", ["dist_train.sh", "dist_test.sh", "slurm_train.sh"])
def test_shell_tools_say_how_they_are_used(script: str) -> None:
    result = subprocess.run(
        ["bash", ROOT / "tools" / script], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "usage:" in result.stderr
