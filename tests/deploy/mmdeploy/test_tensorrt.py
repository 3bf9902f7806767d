"""TensorRT through MMDeploy: what needs no GPU, and graphs that TensorRT-RTX builds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmdeploy.backend.base import get_backend_manager
from mmengine.config import Config

from mmseg_eomt.apis.deploy import deploy
from mmseg_eomt.deploy.mmdeploy.backends import EoMTTensorRTManager, engine_profiles
from mmseg_eomt.deploy.tensorrt import Profile
from mmseg_eomt.deploy.tensorrt.build import serialise
from tests.deploy.lively import lively_config, lively_weights, picture
from tests.deploy.tensorrt.rtx import import_rtx

CONFIGS = Path(__file__).parents[3] / "configs" / "deploy"
PLANS = sorted(path.stem for path in CONFIGS.glob("*tensorrt*.py"))


def test_our_manager_stands_in_mmdeploys_place() -> None:
    assert get_backend_manager("tensorrt") is EoMTTensorRTManager


@pytest.mark.parametrize("name", PLANS)
def test_profiles_of_the_configs_are_whole(name: str) -> None:
    inputs = Config.fromfile(CONFIGS / f"{name}.py").backend_config.get("model_inputs", [{}])
    for profile in engine_profiles(inputs[0]).values():
        assert isinstance(profile, Profile) and profile.minimum[0] == 1


def test_a_missing_shape_is_named() -> None:
    shapes = {"input_shapes": {"input": {"min_shape": [1, 3, 8, 8], "max_shape": [1, 3, 8, 8]}}}
    with pytest.raises(ValueError, match=r"input_shapes\.input has no opt_shape"):
        engine_profiles(shapes)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_rtx_builds_the_graph_of_each_config(name: str, tmp_path: Path) -> None:
    """At small sizes: 512 and 1024 pixels of the config stand for 32 here, 256 for 16."""
    rtx = import_rtx()
    if torch.cuda.is_available():
        pytest.skip("with a GPU the engine itself is built")
    family = "dinov2" if "dynamic" in name else "dinov3"
    lively_weights(tmp_path / "w.safetensors", family)
    lively_config(family).dump(tmp_path / "model.py")
    picture((40, 58)).save(tmp_path / "picture.png")
    plan = Config.fromfile(CONFIGS / f"{name}.py")
    if plan.onnx_config.input_shape is not None:
        plan.onnx_config.input_shape = [32, 32]
    inputs = plan.backend_config.get("model_inputs", [])
    small = {256: 16, 512: 32, 1024: 64 if plan.onnx_config.input_shape is None else 32}
    for entry in inputs:
        for shapes in entry.input_shapes.values():
            for key, shape in shapes.items():
                shapes[key] = [small.get(side, side) for side in shape]
    plan.dump(tmp_path / "plan.py")
    done = deploy(
        tmp_path / "plan.py",
        tmp_path / "model.py",
        tmp_path / "w.safetensors",
        tmp_path / "picture.png",
        work_dir=tmp_path / "out",
    )
    assert done.model.name == "end2end.onnx" and done.agreement is None  # no engine without a GPU
    profiles = engine_profiles(inputs[0]) if inputs else {}
    profiles = {key: value for key, value in profiles.items() if value.minimum != value.maximum}
    engine, _ = serialise(rtx, done.model, profiles=profiles)
    assert len(engine) > 10_000
