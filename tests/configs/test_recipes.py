"""Rates, warm-ups and annealing of each config against the published numbers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmseg.registry import HOOKS, PARAM_SCHEDULERS

from mmseg_eomt.engine.optimizer import LayerDecayOptimWrapperConstructor
from tests.configs.published import (
    CONFIGS,
    LIGHTLY_SIZES,
    OFFICIAL,
    PUBLISHED,
    SIZES,
    arch_of,
    data_of,
)

OWN = [name for name in CONFIGS if name != "tiny_quickstart"]
PLAIN = [name for name in OWN if name not in OFFICIAL]
HEAD_LR = {"dinov3_vitl16_ade20k-official": 2e-4}


@pytest.mark.parametrize("name", OWN)
def test_size_of_the_model(name: str, model: Any) -> None:
    depth, joint_blocks = SIZES[arch_of(name)]
    assert (model.backbone.depth, model.backbone.num_joint_blocks) == (depth, joint_blocks)
    assert model.backbone.patch_size == 16
    assert model.backbone.num_prefix_tokens == 5


@pytest.mark.parametrize("name", OWN)
def test_rates_and_weight_decay_of_all_parameters(name: str, cfg: Config, model: Any) -> None:
    depth, joint_blocks = SIZES[arch_of(name)]
    full = HEAD_LR.get(name, 1e-4)
    rates, decays = _rates(cfg, model)
    assert set(rates) == {name for name, _ in model.named_parameters()}
    assert set(decays.values()) == {0.05}  # on everything, norms and queries too
    for parameter, rate in rates.items():
        if not parameter.startswith("backbone.") or parameter.startswith("backbone.vit.norm."):
            expected = full
        else:
            block = int(parameter.split(".")[3]) if ".blocks." in parameter else 0
            if name == "dinov3_vitl16_ade20k-official":
                # Our reading of lr_mult 0.1: joint blocks at the full rate, the rest at a tenth.
                expected = 2e-4 if block >= depth - joint_blocks else 2e-5
            else:
                expected = full * 0.8 ** (depth - 1 - block)
        assert rate == pytest.approx(expected, rel=1e-6), parameter


@pytest.mark.parametrize("name", ["dinov2_vitl14_ade20k-official"])
def test_rates_that_the_official_code_printed(name: str, cfg: Config, model: Any) -> None:
    rates, _ = _rates(cfg, model)
    assert rates["backbone.vit.blocks.23.attn.qkv.weight"] == pytest.approx(1e-4)
    assert rates["backbone.vit.blocks.0.attn.qkv.weight"] == pytest.approx(5.9e-7, rel=1e-2)
    assert rates["backbone.vit.pos_embed"] == pytest.approx(5.9e-7, rel=1e-2)


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_official_steps_are_absolute(name: str, cfg: Config) -> None:
    steps, warmup, windows = OFFICIAL[name]
    assert cfg.train_cfg.max_iters == steps
    assert cfg.optim_wrapper.precision == "fp16"
    for total in (steps, 2 * steps):
        assert _scheduler(cfg, total).warmup == warmup
        assert _annealing(cfg).resolve(len(windows), total) == windows


@pytest.mark.parametrize("name", PLAIN)
def test_published_warm_up_at_the_published_length(name: str, cfg: Config) -> None:
    scheduler = _scheduler(cfg, cfg.train_cfg.max_iters)
    assert scheduler.warmup == (500, 1_000)
    assert scheduler.power == _annealing(cfg).power == 0.9


@pytest.mark.parametrize("name", PLAIN)
def test_annealing_follows_one_of_the_two_published_rules(name: str, cfg: Config) -> None:
    _, blocks = SIZES[arch_of(name)]
    total = cfg.train_cfg.max_iters
    if name in PUBLISHED:  # LightlyTrain's phases
        edges = [total * phase / (blocks + 2) for phase in range(1, blocks + 2)]
        expected = list(itertools.pairwise(edges))
    else:  # the rule behind the official configs
        starts = {3: (2, 5, 8), 4: (2, 4, 6, 8), 5: (2, 3.5, 5, 6.5, 8)}[blocks]
        expected = [(total * start / 12, total * (start + 2) / 12) for start in starts]
    found = _annealing(cfg).resolve(blocks, total)
    assert torch.tensor(found).sub(torch.tensor(expected)).abs().max() <= 0.5  # whole steps


def test_annealing_of_the_peer_in_its_own_numbers() -> None:
    """As LightlyTrain prints it for 40,000 steps."""
    small = _annealing(_read("dinov3_vits16_ade20k")).resolve(3, 40_000)
    large = _annealing(_read("dinov3_vitl16_ade20k")).resolve(4, 40_000)
    assert small == [(8_000, 16_000), (16_000, 24_000), (24_000, 32_000)]
    assert large == [(6_667, 13_333), (13_333, 20_000), (20_000, 26_667), (26_667, 33_333)]


@pytest.mark.parametrize("name", sorted({*PLAIN, "tiny_quickstart"}))
def test_a_run_of_100_steps_trains(name: str, cfg: Config, model: Any) -> None:
    scheduler = _scheduler(cfg, 100)
    highest = torch.tensor([scheduler.rates(step) for step in range(100)]).amax(0)
    assert torch.allclose(highest, torch.tensor(scheduler.base_values))  # head and backbone
    windows = _annealing(cfg).resolve(model.backbone.num_joint_blocks, 100)
    assert all(0 < start < end < 100 for start, end in windows)


@pytest.mark.parametrize("name", OWN)
def test_common_settings(name: str, cfg: Config) -> None:
    wrapper = cfg.optim_wrapper
    assert wrapper.clip_grad == {"max_norm": 0.01}
    assert wrapper.optimizer.betas == (0.9, 0.999)
    assert wrapper.optimizer.eps == 1e-8
    assert cfg.auto_scale_lr == {"enable": True, "base_batch_size": 16, "rule": "sqrt"}
    loss = cfg.model.decode_head.loss_decode
    assert (loss.class_weight, loss.mask_weight, loss.dice_weight) == (2.0, 5.0, 5.0)
    assert (loss.num_points, loss.oversample_ratio, loss.importance_ratio) == (12544, 3.0, 0.75)
    assert (loss.no_object_weight, loss.ignore_rule) == (0.1, "negative")
    steps = [step.type for step in cfg.train_dataloader.dataset.pipeline]
    assert [s for s in steps if s in ("EoMTColorJitter", "RandomFlip", "ScaleJitterCrop")] == [
        "EoMTColorJitter",
        "RandomFlip",
        "ScaleJitterCrop",
    ]


def test_the_published_figures_belong_to_the_protocol_of_their_size() -> None:
    lightly = [name for name, (_, who) in PUBLISHED.items() if who == "LightlyTrain"]
    assert {arch_of(name) for name in lightly} == set(LIGHTLY_SIZES)
    assert {data_of(name) for name in lightly} == {"ade20k", "coco_stuff", "cityscapes-1024"}


def _read(name: str) -> Config:
    from tests.configs.conftest import read

    return read(name)


def _rates(cfg: Config, model: Any) -> tuple[dict[str, float], dict[str, float]]:
    """Rate and weight decay of every parameter by name."""
    wrapper = cfg.optim_wrapper
    constructor = LayerDecayOptimWrapperConstructor(wrapper, wrapper.pop("paramwise_cfg"))
    groups = constructor.param_groups(model)
    rates = {name: group["lr"] for group in groups for name in group["names"]}
    decays = {name: group["weight_decay"] for group in groups for name in group["names"]}
    return rates, decays


def _scheduler(cfg: Config, total: int) -> Any:
    """The schedule over two groups, as the runner builds it for ``total`` steps."""
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD(
        [
            {"params": [parameters[0]], "lr": 1e-4, "role": "head"},
            {"params": [parameters[1]], "lr": 1e-6, "role": "backbone"},
        ]
    )
    settings = {"optimizer": optimizer, "end": total}
    return PARAM_SCHEDULERS.build(dict(cfg.param_scheduler), default_args=settings)


def _annealing(cfg: Config) -> Any:
    return HOOKS.build(cfg.default_hooks.annealing)
