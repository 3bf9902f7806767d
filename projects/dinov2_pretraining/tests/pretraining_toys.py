"""A tiny model, made views and runs of both, for tests of the whole method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.registry import init_default_scope
from torch import Tensor
from torch.utils.data import Dataset

import dinov2_pretraining  # noqa: F401  (registers)
from dinov2_pretraining.models import DINOv2Pretraining
from mmseg_eomt.datasets.samplers import SampleIndex, StepSampler
from mmseg_eomt.engine.runner import SegmentationRunner

CONFIGS = Path(__file__).parents[1] / "configs"
GLOBAL, LOCAL, PATCH, CELLS = 32, 16, 8, 16
ARCH = {"embed_dims": 16, "depth": 2, "num_heads": 2, "patch_size": PATCH, "num_registers": 2}
HEAD = {"hidden_channels": 24, "bottleneck_channels": 12, "num_prototypes": 40}
PREPROCESSOR = {
    "type": "ViewPreprocessor",
    "mean": [123.675, 116.28, 103.53],
    "std": [58.395, 57.12, 57.375],
}


def tiny_config(path: Path, **changes: Any) -> Path:
    """Write a config of the tiny model on the small recipe, and return its path."""
    values = {
        "backbone": {"pretrained": None, "arch": ARCH, "image_size": GLOBAL},
        "head": HEAD,
        "views": {"global_size": GLOBAL, "local_size": LOCAL, "num_local": 2},
        "batch": 4,
        "steps": 4,
        "interval": 2,
        **changes,
    }
    views = values["views"]
    backbone = {"_delete_": True, "type": "DINOv2", **values["backbone"]}
    path.write_text(
        f"""_base_ = {str(CONFIGS / "_base_" / "small.py")!r}
model = dict(backbone={backbone}, head={values["head"]!r})
train_dataloader = dict(
    batch_size={values["batch"]},
    num_workers=0,
    persistent_workers=False,
    collate_fn=dict(patch_size={PATCH}),
    dataset=dict(pipeline=[dict(type="SeedSample"), dict(type="MultiCropViews", **{views})]),
)
train_cfg = dict(max_iters={values["steps"]}, global_batch_size={values["batch"]})
default_hooks = dict(
    schedule=dict(freeze_backbone=0),
    logger=dict(interval=1),
    checkpoint=dict(interval={values["interval"]}),
)
visualizer = dict(vis_backends=[dict(type="LocalVisBackend")])
"""
    )
    return path


def model_cfg(family: str = "DINOv2", **changes: Any) -> dict[str, Any]:
    return {
        "type": "DINOv2Pretraining",
        "backbone": {"type": family, "arch": ARCH, "image_size": GLOBAL},
        "head": HEAD,
        "data_preprocessor": PREPROCESSOR,
        **changes,
    }


def tiny_model(family: str = "DINOv2", *, seed: int = 0, **changes: Any) -> DINOv2Pretraining:
    init_default_scope("mmseg")
    torch.manual_seed(seed)
    cfg = model_cfg(family, **changes)
    cfg.pop("type")
    return DINOv2Pretraining(**cfg)


def sample(index: int, *, local: int = 2, position: int | None = None) -> dict[str, Any]:
    """Two global views, local ones and masks of an image, all functions of its place in the run."""
    seed = index if position is None else 1000 * position + index
    generator = torch.Generator().manual_seed(seed)
    colour = torch.rand(3, 1, 1, generator=torch.Generator().manual_seed(index)) * 160

    def view(side: int) -> Tensor:
        return (colour + 90 * torch.rand(3, side, side, generator=generator)).byte()

    return {
        "global_views": torch.stack([view(GLOBAL) for _ in range(2)]),
        "local_views": torch.stack([view(LOCAL) for _ in range(local)]),
        "masks": torch.rand(2, CELLS, generator=generator) < torch.tensor([[0.4], [0.0]]),
        "path": f"{index}.png",
    }


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """View by view, as `collate_views` does it."""
    inputs = {
        name: torch.stack([one[name] for one in samples], dim=1).flatten(0, 1)
        for name in ("global_views", "local_views", "masks")
    }
    return {"inputs": inputs, "data_samples": [{"path": one["path"]} for one in samples]}


def batch(size: int = 4, *, first: int = 0, local: int = 2) -> dict[str, Any]:
    return collate([sample(first + index, local=local) for index in range(size)])


class MadeViews(Dataset[Any]):
    """Samples whose views depend on the place in the run, as those of the real dataset do."""

    metainfo: dict[str, Any] = {}

    def __init__(self, size: int = 16) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def get_data_info(self, index: int) -> dict[str, Any]:
        return {"img_path": f"{int(index)}.png"}

    def __getitem__(self, index: int) -> dict[str, Any]:
        position = index.position if isinstance(index, SampleIndex) else 0
        return sample(int(index), position=position)


def runner(
    work_dir: Path,
    *,
    steps: int = 6,
    global_batch_size: int = 4,
    batch_size: int = 4,
    lr: float = 0.02,
    epsilon: float = 1e-8,
    model: dict[str, Any] | None = None,
    hooks: list[Any] | None = None,
    loader: dict[str, Any] | None = None,
    schedule: dict[str, Any] | None = None,
    interval: int = 2,
    every: int = 3,
    **options: Any,
) -> SegmentationRunner:
    """A run of the tiny model, with the hooks of the configs."""
    runner.count += 1  # type: ignore[attr-defined]
    data = MadeViews()
    return SegmentationRunner(
        model=model or model_cfg(),
        work_dir=str(work_dir),
        train_dataloader=loader
        or {
            "batch_size": batch_size,
            "num_workers": 0,
            "dataset": data,
            "sampler": StepSampler(data, seed=5),
            "collate_fn": collate,
            "drop_last": True,
        },
        train_cfg={
            "type": "PretrainLoop",
            "max_iters": steps,
            "global_batch_size": global_batch_size,
        },
        optim_wrapper={
            "type": "MixedPrecisionOptimWrapper",
            "constructor": "PretrainOptimWrapperConstructor",
            "optimizer": {"type": "AdamW", "lr": lr, "eps": epsilon},
            "precision": options.pop("precision", "fp32"),
            "clip_grad": {"max_norm": 3.0},
        },
        auto_scale_lr={"enable": True, "base_batch_size": 1024, "rule": "sqrt"},
        custom_hooks=[
            {"type": "PretrainScheduleHook", **(schedule or {})},
            {"type": "CollapseHook"},
            {"type": "ExportBackboneHook"},
            *(hooks or []),
        ],
        default_hooks={
            "logger": {"type": "LoggerHook", "interval": interval, "log_metric_by_epoch": False},
            "checkpoint": {"type": "SafeCheckpointHook", "interval": every},
        },
        default_scope="mmseg",
        randomness=options.pop("randomness", {"seed": 5}),
        experiment_name=options.pop("experiment_name", f"pretrain{runner.count}"),  # type: ignore[attr-defined]
        **options,
    )


runner.count = 0  # type: ignore[attr-defined]
