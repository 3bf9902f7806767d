"""Starting a run from a file: what is refused before anything is built, and what is logged."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmseg_eomt.apis import load_model, train_semantic_segmentation
from mmseg_eomt.apis.inference import build_segmentor
from mmseg_eomt.apis.train import resolve_training
from mmseg_eomt.checkpoints.weights_file import save_weights
from mmseg_eomt.engine.hooks.start_from import planned_start, start_from
from mmseg_eomt.header import HEADER_KEY, ModelHeader
from tests.apis.tiny import ARCH, FEW_FILES, make_data, tiny_call, tiny_header


def _weights(path: Path, header: ModelHeader | None = None, **changes: Any) -> Path:
    header = header or tiny_header(**changes)
    torch.manual_seed(7)
    save_weights(path, build_segmentor(header), header)
    return path


def _bad_file(kind: str, path: Path) -> None:
    state = build_segmentor(tiny_header()).state_dict()
    header = {HEADER_KEY: tiny_header().to_json()}
    backbone = {name: value for name, value in state.items() if name.startswith("backbone.")}
    if kind == "truncated":
        _weights(path)
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
        (path / "config.json").write_text("{}")
    elif kind == "foreign safetensors":
        save_file(state, path)
    elif kind == "foreign pth":
        torch.save({"state_dict": state}, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": Path("x")}))
    elif kind == "backbone with a header":
        save_file(backbone, path, metadata=header)
    elif kind == "converted backbone":
        save_file(backbone, path, metadata={"mmseg_eomt_backbone": "{}"})
    elif kind == "backbone of timm":
        torch.save({n.removeprefix("backbone.vit."): v for n, v in backbone.items()}, path)
    elif kind == "a part is missing":
        del state["decode_head.mask_head.2.bias"]
        save_file(state, path, metadata=header)
    elif kind == "a part too many":
        save_file({**state, "decode_head.extra": torch.zeros(1)}, path, metadata=header)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such weights file"),
        ("truncated", "damaged safetensors file"),
        ("empty", "start: "),
        ("folder", "tools/convert_checkpoint.py"),
        ("foreign safetensors", "not written by mmseg_eomt.*tools/convert_checkpoint.py"),
        ("foreign pth", "tools/convert_checkpoint.py"),
        ("pickle", "tools/convert_checkpoint.py"),
        ("backbone with a header", "a backbone alone.*--backbone-weights"),
        ("converted backbone", "a backbone alone.*--backbone-weights"),
        ("backbone of timm", "--backbone-weights"),
        ("a part is missing", r"missing in the file: \(1\) decode_head.mask_head.2.bias"),
        ("a part too many", r"not in the model: \(1\) decode_head.extra"),
    ],
)
def test_a_bad_file_ends_the_run_before_its_folder_is_made(
    kind: str, message: str, tmp_path: Path
) -> None:
    path, out = tmp_path / "start", tmp_path / "run"
    _bad_file(kind, path)
    call = tiny_call(make_data(tmp_path / "data"), checkpoint=path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        train_semantic_segmentation(out=out, **call)
    assert str(path) in str(caught.value)
    assert not out.exists()


def test_a_bad_file_is_named_before_the_dataset_is_read(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    call = tiny_call(data, checkpoint=tmp_path / "none.safetensors")
    for image in (tmp_path / "data" / "train" / "images").iterdir():
        image.unlink()  # the dataset would be refused
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        train_semantic_segmentation(out=tmp_path / "run", **call)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused(value: float, tmp_path: Path) -> None:
    model = build_segmentor(tiny_header())
    with torch.no_grad():
        model.decode_head.query.weight[1, 2] = value
    save_weights(tmp_path / "w.safetensors", model, tiny_header())
    with pytest.raises(ValueError, match=r"NaN.*decode_head\.query\.weight"):
        start_from(model, tmp_path / "w.safetensors", classes=["a", "b", "c"])


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ({"architecture": {**ARCH, "num_heads": 4}}, "num_heads 4 in the file, 2 here"),
        ({"architecture": {**ARCH, "depth": 3}}, "depth 3 in the file, 2 here"),
        ({"family": "dinov2"}, "holds dinov2/.*trains dinov3/"),
    ],
)
def test_another_architecture_is_refused_by_name(
    found: dict[str, Any], wanted: str, tmp_path: Path
) -> None:
    path = _weights(tmp_path / "w.safetensors", **found)
    call = tiny_call(make_data(tmp_path / "data"), checkpoint=path)
    with pytest.raises(ValueError, match=wanted):
        train_semantic_segmentation(out=tmp_path / "run", **call)


def test_a_name_and_its_sizes_are_one_architecture(tmp_path: Path) -> None:
    sizes = {"embed_dims": 384, "depth": 12, "num_heads": 6, "patch_size": 16}
    path = _weights(tmp_path / "w.safetensors", architecture=sizes, patch_size=16)
    data = make_data(tmp_path / "data")
    run = resolve_training(
        out=tmp_path / "run", model="dinov3/vits16-eomt", data=data, checkpoint=path
    )
    assert run.cfg.model.backbone.pretrained is None
    with pytest.raises(ValueError, match="depth 12 in the file, 24 here"):
        resolve_training(
            out=tmp_path / "run", model="dinov3/vitl16-eomt", data=data, checkpoint=path
        )


def test_class_head_needs_a_checkpoint(tmp_path: Path) -> None:
    call = tiny_call(make_data(tmp_path / "data"), reuse_class_head="by_name")
    with pytest.raises(ValueError, match="none is given: add checkpoint"):
        train_semantic_segmentation(out=tmp_path / "run", **call)


def test_a_run_logs_its_rules_before_the_first_step_and_trains_from_the_weights(
    tmp_path: Path,
) -> None:
    classes = ("sky", "Road", "boat")
    path = _weights(
        tmp_path / "w.safetensors", classes=classes, num_queries=3, patch_size=4, mean=(1.0,) * 3
    )
    call = tiny_call(make_data(tmp_path / "data"), checkpoint=path, reuse_class_head="by_name")
    call = {**call, **FEW_FILES, "steps": 1}
    # No step moves a weight: what comes out is what the run began with.
    call["model_args"] = {**call["model_args"], "lr": 0.0}
    out = tmp_path / "run"
    train_semantic_segmentation(out=out, **call)
    log = (out / "train.log").read_text()
    first = log.index("Starting from")
    assert first < log.index("Class head by name") < log.index("Iter(train)")
    for words in ("first 3 taken, 1 begin anew", "kernel of the patch", "pixel mean", "'Road'"):
        assert words in log, words
    old = load_file(path)
    for name in ("best", "last"):
        new = load_model(out / "exported" / f"{name}.safetensors", device="cpu").segmentor
        state = new.state_dict()
        query, head = state["decode_head.query.weight"], state["decode_head.class_head.weight"]
        assert torch.equal(query[:3], old["decode_head.query.weight"])
        # road, sky, tree, no object <- sky, Road, boat, no object
        assert torch.equal(head[[1, 3]], old["decode_head.class_head.weight"][[0, 3]])
        block = "backbone.vit.blocks.1.mlp.fc1.weight"
        assert torch.equal(state[block], old[block])


def test_a_planned_start_says_what_the_run_will_do(tmp_path: Path) -> None:
    path = _weights(tmp_path / "w.safetensors", image_size=(64, 64), num_queries=9)
    call = tiny_call(make_data(tmp_path / "data"), checkpoint=path)
    run = resolve_training(out=tmp_path / "run", **call)
    planned = planned_start(run.cfg, run.dataset_meta["classes"])
    assert planned is not None
    rules = {rule.part: rule.done for rule in planned.rules}
    assert rules["queries"] == "first 4 taken, 5 left out"
    model = build_segmentor(tiny_header())
    done = start_from(model, path, classes=list(run.dataset_meta["classes"]))
    assert [r for r in planned.rules if not r.part.startswith("pixel")][1:] == done.rules[1:]
    assert (
        planned_start(resolve_training(out=tmp_path, **tiny_call(call["data"])).cfg, ["a"]) is None
    )
