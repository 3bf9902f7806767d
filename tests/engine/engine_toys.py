"""A model of a few numbers with the attributes the engine relies on, and a runner for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

import mmseg_eomt.engine  # noqa: F401  (registers)
from mmseg_eomt.engine.runner import SegmentationRunner


class ToyBackbone(nn.Module):
    def __init__(self, *, depth: int = 3, dims: int = 4, num_joint_blocks: int = 2) -> None:
        super().__init__()
        self.depth, self.num_joint_blocks = depth, num_joint_blocks
        self.cls_token = nn.Parameter(torch.zeros(1, dims))
        self.patch_embed = nn.Linear(3, dims)
        self.blocks = nn.ModuleList(nn.Linear(dims, dims) for _ in range(depth))
        self.norm = nn.LayerNorm(dims)

    def get_block_index(self, name: str) -> int:
        if name.startswith("blocks."):
            return int(name.split(".")[1])
        if name.startswith("norm."):
            return self.depth - 1
        if name.startswith(("cls_token", "patch_embed.")):
            return 0
        raise KeyError(name)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x) + self.cls_token
        for block in self.blocks:
            x = x + block(x)
        return self.norm(x)


class ToyHead(nn.Module):
    def __init__(self, *, dims: int = 4, num_joint_blocks: int = 2) -> None:
        super().__init__()
        self.num_joint_blocks = num_joint_blocks
        self.query = nn.Embedding(2, dims)
        self.class_head = nn.Linear(dims, 1)
        self.mask_probs = [1.0] * num_joint_blocks
        self.seen: list[tuple[int, int, list[float]]] = []

    def set_mask_probs(self, probabilities: list[float]) -> None:
        self.mask_probs = list(probabilities)

    def set_step(self, step: int, seed: int) -> None:
        self.seen.append((step, seed, self.mask_probs))

    def forward(self, x: Tensor) -> Tensor:
        return self.class_head(x * self.query.weight.sum(0))


class ToySegmentor(BaseModel):  # type: ignore[misc]
    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = ToyBackbone(**kwargs)
        self.decode_head = ToyHead(num_joint_blocks=self.backbone.num_joint_blocks)
        self.prepared: list[int] = []

    def prepare_accumulation(self, batches: list[dict[str, Any]]) -> None:
        self.prepared.append(len(batches))

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
        x = torch.stack(list(inputs)) if isinstance(inputs, list) else inputs
        out = self.decode_head(self.backbone(x)).squeeze(-1)
        if mode == "loss":
            target = torch.stack([sample.target for sample in data_samples])
            return {"loss_mask": ((out - target) ** 2).mean(), "loss_dice": (out**2).mean()}
        for sample, value in zip(data_samples, out, strict=True):
            label = (value > 0).int().expand(1, 4, 6)
            sample.set_data({"pred_sem_seg": PixelData(data=label)})
            sample.set_data({"gt_sem_seg": PixelData(data=torch.ones(1, 4, 6, dtype=torch.int))})
        return data_samples


class ToyData(Dataset[dict[str, Any]]):
    """``inputs`` of three numbers with a target; sample ``bad`` is not a number."""

    metainfo = {"classes": ("road", "sky"), "palette": [(90, 90, 90), (70, 130, 180)]}

    def __init__(self, *, size: int = 12, bad: int = -1, folder: Path | None = None) -> None:
        self.size, self.bad, self.folder = size, bad, folder

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        inputs = torch.randn(3, generator=generator)
        if index == self.bad:
            inputs = inputs * float("nan")
        path = f"{self.folder or 'images'}/{index}.png"
        sample = SegDataSample(metainfo={"img_path": path})
        sample.set_field(inputs.nan_to_num().sum().tanh(), "target", dtype=torch.Tensor)
        return {"inputs": inputs, "data_samples": sample}


class CountingSampler(Sampler[int]):
    """Endless 0, 1, 2, ... modulo the set, with the interface of StepSampler."""

    def __init__(self, dataset: ToyData, *, rank: int = 0, world: int = 1) -> None:
        self.size, self.start, self.rank, self.world = len(dataset), 0, rank, world

    def set_start(self, position: int) -> None:
        self.start = position

    def __iter__(self) -> Any:
        index = self.start + self.rank
        while True:
            yield index % self.size
            index += self.world

    def __len__(self) -> int:
        return self.size


class ToyMetric(BaseMetric):  # type: ignore[misc]
    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results += [1.0] * len(data_samples)

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        return {"count": float(len(results))}


def loader(
    *,
    batch_size: int,
    data: ToyData | None = None,
    sampler: Any = None,
    drop_last: bool = True,
) -> dict[str, Any]:
    data = data or ToyData()
    return {
        "batch_size": batch_size,
        "num_workers": 0,
        "dataset": data,
        "sampler": sampler or CountingSampler(data),
        "collate_fn": {"type": "pseudo_collate"},
        "drop_last": drop_last,
    }


def runner(
    work_dir: Path | str,
    *,
    steps: int = 6,
    global_batch_size: int = 4,
    batch_size: int = 4,
    train: dict[str, Any] | None = None,
    optim: dict[str, Any] | None = None,
    with_val: bool = False,
    hooks: list[Any] | None = None,
    interval: int = 2,
    checkpoint: dict[str, Any] | None = None,
    **kwargs: Any,
) -> SegmentationRunner:
    """A runner of the toy model; its own name keeps mmengine's global instances apart."""
    if with_val:
        data = ToyData(size=4, folder=Path(work_dir))
        val = loader(batch_size=2, data=data, drop_last=False)
        val["sampler"] = torch.utils.data.SequentialSampler(data)
        kwargs.update(val_dataloader=val, val_cfg={}, val_evaluator=[ToyMetric()])
    runner.count += 1  # type: ignore[attr-defined]
    kwargs.setdefault("experiment_name", f"toy{runner.count}")  # type: ignore[attr-defined]
    return SegmentationRunner(
        model=kwargs.pop("model", None) or ToySegmentor(),
        work_dir=str(work_dir),
        train_dataloader=train or loader(batch_size=batch_size),
        train_cfg={
            "type": "AccumulationTrainLoop",
            "max_iters": steps,
            "global_batch_size": global_batch_size,
            "val_interval": 3,
        },
        optim_wrapper={
            "type": "MixedPrecisionOptimWrapper",
            "constructor": "LayerDecayOptimWrapperConstructor",
            "optimizer": {"type": "AdamW", "lr": 0.01, "weight_decay": 0.05},
            "precision": "fp32",
            **(optim or {}),
        },
        param_scheduler={"type": "TwoStageWarmupPolyLR", "warmup": kwargs.pop("warmup", (1, 1))},
        custom_hooks=[{"type": "MaskAnnealingHook"}] if hooks is None else hooks,
        default_hooks={
            "logger": {"type": "LoggerHook", "interval": interval, "log_metric_by_epoch": False},
            "checkpoint": {"type": "SafeCheckpointHook", "interval": 3, **(checkpoint or {})},
        },
        default_scope="mmseg",
        randomness=kwargs.pop("randomness", {"seed": 5}),
        **kwargs,
    )


runner.count = 0  # type: ignore[attr-defined]


def logged(work_dir: Path | str, key: str) -> dict[int, float]:
    """Step -> value of ``key`` in the run's scalars file."""
    import json

    values = {}
    for path in sorted(Path(work_dir).rglob("scalars.json")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if key in row:
                values[int(row["step"])] = float(row[key])
    return values
