"""Each config loads, is named and documented by the rules, and holds no key that nothing reads."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import VISBACKENDS as ROOT_VISBACKENDS
from mmengine.runner import Runner
from mmseg.registry import (
    DATA_SAMPLERS,
    DATASETS,
    HOOKS,
    METRICS,
    MODELS,
    OPTIM_WRAPPERS,
    RUNNERS,
    TRANSFORMS,
    VISUALIZERS,
)

from mmseg_eomt.engine.optimizer import LayerDecayOptimWrapperConstructor
from mmseg_eomt.engine.train_loop import AccumulationTrainLoop
from tests.configs.published import CONFIGS, PROTOCOLS, PUBLISHED, REQUIRED, ROOT, arch_of, data_of

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
# Read by mmengine before a runner exists, by tools/test.py --tta, or by people and MMDeploy.
OUTSIDE_RUNNER = {
    "custom_imports",
    "runner_type",
    "compile",  # of the Runner too, but read from the whole config
    "auto_scale_lr",
    "strategy",  # of SegmentationRunner, read from the whole config
    "tta_model",
    "tta_pipeline",
    "train_pipeline",
    "test_pipeline",
    "crop_size",
    "dataset_type",
    "data_root",
    "data",
}


def test_every_architecture_and_dataset_of_the_project_has_its_config() -> None:
    assert set(CONFIGS) == REQUIRED


@pytest.mark.parametrize("name", CONFIGS)
def test_loads_from_any_folder(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Config.fromfile(ROOT / "eomt" / f"{name}.py").model.type == "EoMTSegmentor"


@pytest.mark.parametrize("name", CONFIGS)
def test_docstring_names_the_published_figure_and_no_other(name: str) -> None:
    text = ast.get_docstring(ast.parse((ROOT / "eomt" / f"{name}.py").read_text()))
    assert text is not None
    (statement,) = re.findall(r"Published mIoU: (.*?)(?:\n\n|\Z)", text, flags=re.DOTALL)
    if name in PUBLISHED:
        figure, publisher = PUBLISHED[name]
        assert statement.startswith(f"{figure} by {publisher} (")
    else:
        assert statement.startswith("none")
        # Tables of memory are indented and prose gives its figures units: anything else like 53.1
        # would pass for an mIoU.
        prose = re.sub(r"(?m)^ {4}.*$", "", text)
        assert not re.search(r"\d\d\.\d(?! GB)", prose)


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - {"tiny_quickstart"}))
def test_name_says_what_is_inside(name: str, cfg: Config) -> None:
    family, arch, data = name.split("_", 2)
    crop, queries, steps, classes = PROTOCOLS[data]
    assert cfg.model.backbone.type == {"dinov2": "DINOv2", "dinov3": "DINOv3"}[family]
    assert cfg.model.backbone.arch == arch
    assert cfg.crop_size == (crop, crop)
    assert cfg.model.decode_head.num_queries == queries
    assert cfg.train_cfg.global_batch_size == 16
    if steps is not None:
        assert cfg.train_cfg.max_iters == steps
    if classes is not None:
        dataset = DATASETS.get(cfg.train_dataloader.dataset.type)
        assert len(dataset.METAINFO["classes"]) == classes
    assert cfg.model.decode_head.num_classes is None  # the dataset says


@pytest.mark.parametrize("name", CONFIGS)
def test_one_crop_size_everywhere(name: str, cfg: Config) -> None:
    side = cfg.crop_size[0]
    image_size = cfg.model.backbone.image_size
    assert image_size in (side, (side, side))
    (crop,) = [s for s in cfg.train_dataloader.dataset.pipeline if s.type == "ScaleJitterCrop"]
    assert crop["size"] == cfg.crop_size
    for loader in LOADERS[1:]:
        # MMDeploy expects reading first and resizing second.
        pipeline = cfg[loader].dataset.pipeline
        assert pipeline == cfg.test_pipeline
        assert [step.type for step in pipeline[:2]] == ["LoadImageFromFile", "ResizeShortSide"]
        assert pipeline[1]["size"] == side
    scales = [option["size"] / side for option in cfg.tta_pipeline[1].transforms[0]]
    assert 1.0 in scales
    assert scales == pytest.approx([round(scale * 4) / 4 for scale in scales])


@pytest.mark.parametrize("name", CONFIGS)
def test_pretrained_weights_are_asked_for_where_they_are_released(name: str, cfg: Config) -> None:
    without = name == "tiny_quickstart" or arch_of(name) == "vitl16plus"
    assert cfg.model.backbone.pretrained == (None if without else "timm")


@pytest.mark.parametrize("name", CONFIGS)
def test_model_builds(name: str, model: Any, cfg: Config) -> None:
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.decode_head.query.weight.shape[0] == cfg.model.decode_head.num_queries
    # A quarter of the input per mask value for patches of 16, as published.
    patch = model.backbone.patch_size
    assert patch / 2 ** len(model.decode_head.upscale) == 4


@pytest.mark.parametrize("name", CONFIGS)
def test_micro_batches_fill_the_global_batch(name: str, cfg: Config) -> None:
    assert cfg.train_cfg.global_batch_size % cfg.train_dataloader.batch_size == 0


@pytest.mark.parametrize("name", CONFIGS)
def test_no_key_is_unknown_to_its_component(name: str, cfg: Config, tmp_path: Any) -> None:
    runner_keys = set(inspect.signature(Runner.__init__).parameters) | OUTSIDE_RUNNER
    assert set(cfg) <= runner_keys, sorted(set(cfg) - runner_keys)
    assert RUNNERS.get(cfg.runner_type) is not None
    loop = {**cfg.train_cfg}
    assert loop.pop("type") == "AccumulationTrainLoop"
    assert set(loop) <= set(inspect.signature(AccumulationTrainLoop).parameters)
    for hook in cfg.default_hooks.values():
        HOOKS.build(hook)
    for loader in LOADERS:
        sampler = cfg[loader].sampler
        DATA_SAMPLERS.build({**sampler, "dataset": [0, 1, 2], "seed": 0})
        for step in cfg[loader].dataset.pipeline:
            TRANSFORMS.build(step)
        arguments = set(cfg[loader].dataset) - {"type"}
        assert arguments <= _arguments(DATASETS.get(cfg[loader].dataset.type))
    for step in cfg.tta_pipeline:
        TRANSFORMS.build(step)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        METRICS.build(evaluator)
    VISUALIZERS.build({**cfg.visualizer, "save_dir": str(tmp_path), "name": f"{name}-test"})
    assert MODELS.get(cfg.tta_model.type) is not None
    wrapper = {**cfg.optim_wrapper}
    LayerDecayOptimWrapperConstructor(
        {key: wrapper[key] for key in ("type", "optimizer")}, wrapper.pop("paramwise_cfg")
    )
    assert wrapper.pop("constructor") == "LayerDecayOptimWrapperConstructor"
    settings = {**wrapper.pop("optimizer")}
    assert settings.pop("type") == "AdamW"
    adamw = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], **settings)
    OPTIM_WRAPPERS.build(wrapper, default_args={"optimizer": adamw})


@pytest.mark.parametrize("backend", ["WandbBackend", "MLflowBackend"])
def test_another_logger_is_one_option(backend: str, tmp_path: Any) -> None:
    cfg = Config.fromfile(ROOT / "eomt" / "dinov3_vits16_folder.py")
    assert cfg.visualizer.vis_backends[1].type == "TensorboardVisBackend"
    cfg.merge_from_dict({"visualizer.vis_backends.1.type": backend})
    built = ROOT_VISBACKENDS.build({**cfg.visualizer.vis_backends[1], "save_dir": str(tmp_path)})
    assert type(built).__name__ == backend


def test_data_of_reads_the_whole_dataset_part() -> None:
    assert data_of("dinov3_vits16_coco_stuff") == "coco_stuff"


def _arguments(component: type) -> set[str]:
    """Keyword arguments that a class takes, through its bases as far as it has ``**kwargs``."""
    names: set[str] = set()
    for base in component.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters
        names |= set(parameters)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return names
