"""The recipe for small machines learns on a CPU, and a run that does not is told apart."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from dinov2_pretraining.engine import effective_rank, feature_std
from mmseg_eomt.apis.pretraining import resolve_pretraining
from mmseg_eomt.apis.run import run_training
from mmseg_eomt.checkpoints.describe import unwrap

PROTOTYPES, BATCH = 128, 32
SAYS_NOTHING = math.log(PROTOTYPES)  # 4.85: loss and entropy of a teacher that says nothing


def write_textures(folder: Path, count: int = 96) -> None:
    """Stripes and chequers of 64 x 64 pixels, each image of its own colours, angle and period."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64].astype(float)
    for number in range(count):
        angle, phase = random.uniform(0, np.pi), random.uniform(0, 6)
        frequency = 2 * np.pi / random.uniform(10, 32)
        waves = np.sin(frequency * (x * np.cos(angle) + y * np.sin(angle)) + phase)
        if number % 2:
            across = np.sin(frequency * (y * np.cos(angle) - x * np.sin(angle)))
            waves = np.sign(waves) * np.sign(across)
        one, other = random.integers(0, 256, (2, 3))
        image = one + (waves[..., None] + 1) / 2 * (other - one)
        cv2.imwrite(str(folder / f"{number}.png"), image.astype(np.uint8))


@pytest.fixture(scope="module")
def textures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("textures")
    write_textures(folder)
    return folder


def small_run(out: Path, images: Path, *, steps: int, **method_args: Any) -> Config:
    """The scratch recipe with a backbone, head, views and schedule for seconds on a CPU."""
    arch = {"embed_dims": 64, "depth": 2, "num_heads": 4, "patch_size": 8, "num_registers": 0}
    sizes = {"num_prototypes": PROTOTYPES, "hidden_channels": 128, "bottleneck_channels": 32}
    # Narrow networks take higher rates; a short run a teacher that follows sooner.
    short = {"lr": 0.016, "layer_decay": 1.0, "patch_embed_lr_mult": 1.0, "momentum": (0.98, 1.0)}
    cfg = resolve_pretraining(
        out=out,
        data=[str(images)],
        model="dinov2/vits14",
        recipe="scratch",
        steps=steps,
        batch_size=BATCH,
        num_workers=0,
        model_args={"arch": arch, "image_size": 32},
        method_args={**sizes, **short, **method_args},
        transform_args={"global_size": 32, "local_size": 16, "num_local": 2},
        logger_args={"tensorboard": None},
        save_checkpoint_args={"interval": 10**6},
    )
    cfg.default_hooks.logger.interval = 10
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook["type"] != "PatchPictureHook"]
    return cfg


def numbers(out: Path) -> list[dict[str, float]]:
    """The log lines of each tenth step, each the mean of ten steps."""
    (path,) = out.glob("*/vis_data/scalars.json")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if "loss_dino" in line and line["step"] % 10 == 0]


def failures(first: dict[str, float], last: dict[str, float]) -> list[str]:
    """What is wrong with a run by its first and its last numbers; nothing, if it learns."""
    limits = {
        "loss falls": first["loss"] - last["loss"] > 0.5,
        "loss_dino falls": first["loss_dino"] - last["loss_dino"] > 0.2,
        "loss_ibot falls": first["loss_ibot"] - last["loss_ibot"] > 0.15,
        # With Sinkhorn's balanced answers a student that knows nothing of the image cannot get
        # below the logarithm: what is below it was learnt.
        "loss_dino says something": last["loss_dino"] < SAYS_NOTHING - 0.15,
        "teacher says something": last["teacher_entropy"] < SAYS_NOTHING - 0.5,
        "patches say something": last["teacher_patch_entropy"] < SAYS_NOTHING - 0.3,
        "features are spread": last["feature_std"] > 0.7,
        "features have directions": last["feature_rank"] > 5.0,
    }
    return [name for name, holds in limits.items() if not holds]


def last_of(lines: list[dict[str, float]]) -> dict[str, float]:
    """Means of the last three lines."""
    return {name: statistics.fmean(line[name] for line in lines[-3:]) for name in lines[-1]}


@torch.no_grad()
def numbers_of(model: Any, loader: Any, *, steps: int) -> dict[str, float]:
    """The numbers that a model would log, without learning."""
    found = []
    for _, data in zip(range(steps), loader, strict=False):
        losses = model(**model.data_preprocessor(data), mode="loss")
        line = {name: float(value) for name, value in losses.items()}
        line["loss"] = sum(value for name, value in line.items() if name.startswith("loss_"))
        features = model.seen_features
        line |= {"feature_std": feature_std(features), "feature_rank": effective_rank(features)}
        found.append(line)
    return {name: statistics.fmean(line[name] for line in found) for name in found[0]}


def test_a_hundred_steps_learn_and_a_collapsed_teacher_does_not_pass(
    textures: Path, tmp_path: Path
) -> None:
    runner = run_training(small_run(tmp_path, textures, steps=100))
    lines = numbers(tmp_path)
    assert failures(lines[0], last_of(lines)) == []

    model = unwrap(runner.model)
    loader = runner.train_dataloader
    intact = numbers_of(model, loader, steps=3)
    assert failures(lines[0], intact) == []
    # A teacher that sees the same in every image.
    norm = model.teacher.encoder.backbone.vit.norm
    norm.weight.data.zero_()
    norm.bias.data.fill_(1.0)
    collapsed = numbers_of(model, loader, steps=3)
    assert set(failures(lines[0], collapsed)) >= {
        "loss_dino says something",
        "teacher says something",
        "patches say something",
        "features are spread",
        "features have directions",
    }
    assert collapsed["teacher_entropy"] == pytest.approx(SAYS_NOTHING, abs=1e-3)
    assert collapsed["feature_std"] == pytest.approx(0.0, abs=1e-3)


@pytest.mark.slow
def test_a_run_that_collapses_by_itself_does_not_pass(textures: Path, tmp_path: Path) -> None:
    """A teacher as soft as the student asks for no sharpness: it ends saying nothing."""
    soft = {"teacher_temp": (0.1, 0.1), "centring": "softmax", "koleo_weight": 0.0}
    run_training(small_run(tmp_path, textures, steps=100, **soft))
    lines = numbers(tmp_path)
    assert {"loss_dino says something", "teacher says something"} <= set(
        failures(lines[0], last_of(lines))
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_longer_runs_learn_more(textures: Path, tmp_path: Path, seed: int) -> None:
    cfg = small_run(tmp_path, textures, steps=400)
    cfg.randomness.seed = seed
    run_training(cfg)
    lines = numbers(tmp_path)
    after = {steps: last_of(lines[: steps // 10]) for steps in (100, 400)}
    assert failures(lines[0], after[400]) == []
    assert after[400]["loss_dino"] < after[100]["loss_dino"] - 0.05
    assert after[400]["feature_rank"] > after[100]["feature_rank"]
