"""The Python call: the run it resolves to, what it refuses, and one short run to the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from mmseg_eomt.apis import load_model, train_semantic_segmentation
from mmseg_eomt.apis.options import MODEL_NAMES, load_model_config
from mmseg_eomt.apis.run import prepare_training
from mmseg_eomt.apis.train import resolve_training
from mmseg_eomt.checkpoints.weights_file import read_training_notes
from mmseg_eomt.config_files import config_path
from tests.apis.tiny import CLASSES, make_data, tiny_call


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_model_name_has_its_config(name: str) -> None:
    assert f"{load_model_config(name).model.backbone.arch}-eomt" == name.split("/")[1]


def test_call_and_config_of_one_name_are_one_run(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    cfg: Any = Config.fromfile(config_path("eomt/dinov2_vitl14_folder.py"))
    cfg.work_dir, cfg.launcher = str(tmp_path / "run"), "none"
    from_config = prepare_training(cfg, data=data).cfg
    call = resolve_training(out=tmp_path / "run", model="dinov2/vitl14-eomt", data=data).cfg
    assert call.to_dict() == from_config.to_dict()
    assert call.model.decode_head.num_classes == len(CLASSES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "dinov3/vits17-eomt"}, "Did you mean 'dinov3/vits16-eomt'"),
        ({"model_args": {"num_querys": 3}}, "Did you mean 'num_queries'"),
        ({"model_args": {"backbone_weights": "/no/such.pth"}}, "no such backbone weights"),
        ({"transform_args": {"image_size": "big"}}, "transform_args.image_size is 'big'"),
        ({"transform_args": {"normalize": {"mean": [123], "std": [58]}}}, "divide numbers"),
        ({"logger_args": {"comet": {}}}, "Allowed: tensorboard, mlflow, wandb"),
        ({"steps": 0}, "steps is 0"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"devices": 0}, "devices is 0"),
        ({"checkpoint": "/no/such.safetensors"}, "no such weights file"),
        ({"checkpoint": "x", "resume": True}, "give one of them"),
    ],
)
def test_wrong_arguments_end_before_the_folder_is_made(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    call = tiny_call(make_data(tmp_path / "data"))
    out = tmp_path / "run"
    with pytest.raises((ValueError, OSError), match=message):
        train_semantic_segmentation(out=out, **{**call, **changes})
    assert not out.exists()


def test_loggers_are_switched_by_name(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    args = {"tensorboard": None, "wandb": {"mode": "offline"}}
    cfg = resolve_training(out=tmp_path, model=MODEL_NAMES[0], data=data, logger_args=args).cfg
    kinds = [backend["type"] for backend in cfg.visualizer.vis_backends]
    assert "TensorboardVisBackend" not in kinds
    assert cfg.visualizer.vis_backends[-1]["init_kwargs"] == {"mode": "offline"}


def test_run_leaves_what_is_promised_and_is_never_overwritten(tmp_path: Path) -> None:
    call, out = tiny_call(make_data(tmp_path / "data")), tmp_path / "run"
    train_semantic_segmentation(out=out, **call)
    assert "Iter(val)" in (out / "train.log").read_text()
    assert list(out.rglob("events.out.tfevents*"))
    assert read_training_notes(out / "exported" / "best.safetensors")["metrics"]["mIoU"] >= 0
    # The last lean weights are those of the last training checkpoint.
    lean = load_model(out / "exported" / "last.safetensors", device="cpu")
    full = load_model(out / "iter_3.pth", device="cpu")
    assert lean.classes == CLASSES
    for name, value in lean.segmentor.state_dict().items():
        assert torch.equal(full.segmentor.state_dict()[name], value), name
    with pytest.raises(FileExistsError, match="resume=True"):
        train_semantic_segmentation(out=out, **call)
    train_semantic_segmentation(out=out, **{**call, "steps": 4, "resume": True})
    assert (out / "iter_4.pth").is_file()
    # Another task takes everything over but the class head.
    weights = str(out / "exported" / "last.safetensors")
    other = tmp_path / "other"
    frozen = {**call["model_args"], "lr": 0.0}
    again = {**call, "steps": 1, "checkpoint": weights, "model_args": frozen}
    train_semantic_segmentation(out=other, **again)
    assert list(other.rglob("events.out.tfevents*")), "went to the folder of the first run"
    start = load_model(weights, device="cpu").segmentor.state_dict()
    end = load_model(other / "exported" / "last.safetensors", device="cpu").segmentor.state_dict()
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert changed == {"decode_head.class_head.weight", "decode_head.class_head.bias"}
