"""The tool, the Python call and what comes out of them."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from data.pictures import write_pictures
from mmengine.config import Config
from mmengine.registry import FUNCTIONS, init_default_scope
from mmseg.registry import HOOKS, MODELS
from pretraining_toys import ARCH, CONFIGS, GLOBAL, HEAD, LOCAL, PATCH, tiny_config

import mmseg_eomt
from dinov2_pretraining.data.views import MultiCropViews
from mmseg_eomt.apis.pretraining import (
    METHOD_ARGS,
    MODEL_ARGS,
    RECIPES,
    VIEW_ARGS,
    load_recipe,
    resolve_pretraining,
)
from mmseg_eomt.checkpoints.torch_file import read_training_checkpoint
from mmseg_eomt.commands import pretrain
from mmseg_eomt.models.architectures import ARCHITECTURES

PRETRAIN: Any = vars(pretrain)
CALL: dict[str, Any] = {
    "steps": 2,
    "batch_size": 4,
    "num_workers": 0,
    "model_args": {"arch": ARCH, "backbone_weights": None, "image_size": GLOBAL},
    "method_args": {**HEAD, "freeze_backbone": 0},
    "transform_args": {"global_size": GLOBAL, "local_size": LOCAL, "num_local": 2},
    "logger_args": {"tensorboard": None},
}


def tool(*arguments: object) -> int:
    return int(PRETRAIN["main"]([str(argument) for argument in arguments]))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_pictures(folder / "one", 6)
    write_pictures(folder / "two", 4, first=6)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A run of four steps by the tool."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config(folder / "tiny.py")
    assert tool(config, "--data", images, "--work-dir", folder / "out") == 0
    return folder


def assert_same_weights(one: Path, two: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two checkpoints whose student, teacher and centres are equal to the bit."""
    first, second = read_training_checkpoint(one), read_training_checkpoint(two)
    assert first["state_dict"].keys() == second["state_dict"].keys()
    for name, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][name]), name
    return first, second


def scalars(out: Path) -> list[dict[str, Any]]:
    (path,) = out.glob("*/vis_data/scalars.json")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_checkpoints_exports_pictures_and_numbers(run: Path) -> None:
    out = run / "out"
    for name in (
        *("iter_2.pth", "iter_4.pth", "train.log", "exported/backbone.safetensors"),
        *("exported/backbone_meta.pth", "pictures/patches_000000.png"),
        "pictures/patches_000004.png",
    ):
        assert (out / name).is_file(), name
    lines = [line for line in scalars(out) if "loss_dino" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for name in ("loss_ibot", "loss_koleo", "teacher_entropy", "feature_std", "feature_rank"):
        assert all(name in line for line in lines), name


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(run: Path, images: Path) -> None:
    out = run / "resumed"
    out.mkdir()
    (out / "iter_2.pth").write_bytes((run / "out" / "iter_2.pth").read_bytes())
    assert tool(run / "tiny.py", "--data", images, "--work-dir", out, "--resume") == 0
    whole, resumed = assert_same_weights(run / "out" / "iter_4.pth", out / "iter_4.pth")
    half = read_training_checkpoint(out / "iter_2.pth")["state_dict"]
    assert any(not torch.equal(whole["state_dict"][name], half[name]) for name in half)
    states = (whole["optimizer"]["state"], resumed["optimizer"]["state"])
    assert states[0].keys() == states[1].keys()
    for key, state in states[0].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][key][name]))


@pytest.mark.parametrize("name", ["backbone.safetensors", "backbone_meta.pth"])
def test_the_export_is_the_teacher_and_loads_into_eomts_backbone(run: Path, name: str) -> None:
    init_default_scope("mmseg")
    exported = str(run / "out" / "exported" / name)
    backbone = MODELS.build(
        {"type": "DINOv2", "arch": ARCH, "image_size": GLOBAL, "pretrained": exported}
    )
    backbone.init_weights()
    state = read_training_checkpoint(run / "out" / "iter_4.pth")["state_dict"]
    prefix = "teacher.encoder.backbone.vit."
    teacher = {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
    # No key is missing, none is left over, and each value is the teacher's.
    assert teacher.keys() == backbone.vit.state_dict().keys()
    for key, value in backbone.vit.state_dict().items():
        assert torch.equal(value, teacher[key]), key


def test_the_python_call_makes_the_same_run_as_its_config(images: Path, tmp_path: Path) -> None:
    data = [images / "one", images / "two"]
    out = mmseg_eomt.pretrain(out=tmp_path / "out", data=data, labelled=images, **CALL)
    assert (out / "exported" / "backbone.safetensors").is_file()
    measured = [line["step"] for line in scalars(out) if "knn_accuracy" in line]
    assert measured == [0, 1, 2]
    with pytest.raises(FileExistsError, match="overwrite"):
        mmseg_eomt.pretrain(out=out, data=images, **CALL)
    # The config in the folder is the whole run.
    (config,) = out.glob("*.py")
    assert tool(config, "--work-dir", tmp_path / "again") == 0
    assert_same_weights(out / "iter_2.pth", tmp_path / "again" / "iter_2.pth")


def test_the_tools_arguments_make_the_run_of_the_python_call(images: Path, tmp_path: Path) -> None:
    options = {
        "model.backbone.arch": {"_delete_": True, **ARCH},
        "model.backbone.image_size": GLOBAL,
        **{f"model.head.{name}": value for name, value in HEAD.items()},
        "train_dataloader.collate_fn.patch_size": PATCH,
        "train_dataloader.num_workers": 0,
        "train_dataloader.persistent_workers": False,
        "train_cfg.global_batch_size": 4,
        "train_cfg.max_iters": 2,
        "default_hooks.schedule.freeze_backbone": 0,
    }
    pipeline = "train_dataloader.dataset.pipeline.1"
    for name, value in CALL["transform_args"].items():
        options[f"{pipeline}.{name}"] = value
    args = PRETRAIN["parse_args"](
        [
            *(str(CONFIGS / "dinov2_vits14_small.py"), "--data", str(images)),
            *("--labelled", str(images), "--seed", "3", "--backbone-weights", "none"),
            *("--work-dir", str(tmp_path), "--resume"),
        ]
    )
    args.cfg_options = options
    by_tool = PRETRAIN["resolve"](args).to_dict()
    by_call = resolve_pretraining(
        out=tmp_path, data=[str(images)], model="dinov2/vits14", seed=3, labelled=images, **CALL
    ).to_dict()
    by_tool["visualizer"]["vis_backends"].pop()  # TensorBoard's, switched off in the call
    by_call.pop("max_iters")  # for MMEngine's own tools
    assert by_tool == by_call


@pytest.mark.slow
def test_two_processes_make_one_run(images: Path, tmp_path: Path) -> None:
    out = mmseg_eomt.pretrain(out=tmp_path / "out", data=images, devices=2, **CALL)
    assert (out / "exported" / "backbone.safetensors").is_file()
    assert [line["step"] for line in scalars(out) if "loss_dino" in line] == [2]
    cfg = Config.fromfile(next(out.glob("*.py")))
    assert cfg.launcher == "pytorch"


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_configs_are_whole(config: Path, images: Path, tmp_path: Path) -> None:
    cfg = Config.fromfile(config)
    steps = [step["type"] for step in cfg.train_dataloader.dataset.pipeline]
    assert steps == ["SeedSample", "MultiCropViews"]
    views = cfg.train_dataloader.dataset.pipeline[1]
    for side in (views.get("global_size", 224), views.get("local_size", 98)):
        assert side % cfg.train_dataloader.collate_fn.patch_size == 0
    hooks = [hook["type"] for hook in cfg.custom_hooks]
    assert hooks == ["TrainingDataHook", "PatchPictureHook", "LabelledAccuracyHook"]
    family, arch, recipe = config.stem.split("_")
    assert cfg.model.backbone.arch == arch
    by_call = load_recipe(f"{family}/{arch}", recipe=recipe)
    assert by_call.to_dict() == cfg.to_dict()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"model": "dinov2/vits15"}, ["vits15", "dinov2/vits14"]),
        ({"model": "dinov2/vits14-eomt"}, ["vits14-eomt", "dinov2/vits14"]),
        ({"method": "dino"}, ["'dino'", "dinov2"]),
        ({"recipe": "big"}, ["'big'", "small", "8gpu"]),
        ({"data": "nowhere"}, ["nowhere", "no such folder"]),
        ({"labelled": "nowhere"}, ["nowhere", "subfolder"]),
        ({"resume": True}, ["no checkpoint", "resume=False"]),
        ({"devices": 0}, ["devices", "auto"]),
        ({"precision": "int8"}, ["int8", "bf16"]),
        ({"num_workers": -1}, ["num_workers"]),
        ({"steps": 0}, ["steps"]),
        ({"model_args": {"depth": 3}}, ["depth", "arch"]),
        ({"method_args": {"temperature": 3}}, ["temperature", "student_temp"]),
        ({"transform_args": {"crop": 3}}, ["crop", "global_size"]),
        ({"save_checkpoint_args": {"save_best": "x"}}, ["save_best", "interval"]),
    ],
)
def test_wrong_arguments_cost_nothing(
    call: dict[str, Any], words: list[str], images: Path, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        mmseg_eomt.pretrain(out=tmp_path / "out", **{"data": images, **CALL, **call})
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["nowhere.py"], "nowhere.py"),
        (["{c}"], "--data"),
        (["{c}", "--data", "nowhere"], "nowhere"),
        (["{c}", "--data", "{d}", "--resume", "nowhere.pth"], "nowhere.pth"),
        (["{c}", "--data", "{d}", "--cfg-options", "train_cfg.global_batch_size=64"], "10 images"),
        (["{c}", "--data", "{d}", "--cfg-options", "model.centring=none"], "centring"),
        (["{c}", "--data", "{d}", "--cfg-options", "train_dataloader.collate_fn.patch_size=14"],
         "patch"),
    ],
)  # fmt: skip
def test_the_tool_says_what_is_wrong_before_the_first_step(
    arguments: list[str],
    word: str,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"c": tiny_config(tmp_path / "tiny.py"), "d": images}
    arguments = [argument.format(**names) for argument in arguments]
    assert tool(*arguments, "--work-dir", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "Error: " in error
    assert word in error
    assert not list(tmp_path.glob("out/iter_*"))


def test_a_dry_run_prints_the_run_and_makes_no_folder(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(tmp_path / "tiny.py")
    assert tool(config, "--data", images, "--work-dir", tmp_path / "out", "--dry-run") == 0
    text = capsys.readouterr().out
    assert "10 in " in text
    assert "4 of 4 images; each is seen 1.6 times" in text
    assert "from scratch" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", ["dinov2/vits14", "dinov3/vits16"])
def test_arguments_reach_places_that_exist(model: str, images: Path, tmp_path: Path) -> None:
    """Each name of the tables names a place that the recipe has or its class takes."""
    values: dict[str, Any] = {"arch": ARCH, "momentum": (0.5, 0.6), "ibot_head": HEAD}
    registries = {"backbone": MODELS, "model": MODELS, "schedule": HOOKS, "collate_fn": FUNCTIONS}
    recipe = load_recipe(model).to_dict()
    for places, name in ((MODEL_ARGS, "model_args"), (METHOD_ARGS, "method_args")):
        for key, place in places.items():
            *parents, last = place.split(".")
            node: Any = recipe
            for part in parents:
                node = node[part]
            if last not in node:
                kind = registries[parents[-1]].get(node["type"])
                assert last in inspect.signature(kind).parameters, place
            value = values.get(key, 0.5)
            node = resolve_pretraining(
                out=tmp_path, data=[str(images)], model=model, **{name: {key: value}}
            )
            for part in place.split("."):
                node = node[part]
            assert node == value


def test_views_take_the_arguments_of_their_class() -> None:
    assert set(VIEW_ARGS) <= set(inspect.signature(MultiCropViews).parameters)


@pytest.mark.parametrize("model", sorted(ARCHITECTURES))
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_backbone_has_each_recipe(model: str, recipe: str) -> None:
    cfg = load_recipe(model, recipe=recipe)
    patch = ARCHITECTURES[model].patch_size
    views = cfg.train_dataloader.dataset.pipeline[1]
    sides = (views.global_size, views.local_size, cfg.model.backbone.image_size)
    assert cfg.train_dataloader.collate_fn.patch_size == patch
    assert all(side % patch == 0 for side in sides)
