"""Deploying with MMDeploy: ONNX file or engine, SDK files, pictures to compare."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import init_default_scope

from mmseg_eomt.apis.options import set_short_side
from mmseg_eomt.apis.resolve import LOADERS, set_channels, set_data
from mmseg_eomt.checkpoints.describe import test_size_of
from mmseg_eomt.compat import require_mmdeploy
from mmseg_eomt.deploy.mmdeploy.model_config import model_of_checkpoint
from mmseg_eomt.header import ModelHeader

MODEL_CONFIG = "model_config.py"
"""Written into the work folder: the model config for MMDeploy's tools."""
ENOUGH = {"fp32": 0.999, "fp16": 0.99}
"""Share of pixels of the picture whose labels should agree with PyTorch's."""

# Said by MMDeploy at each call, about operators and names that an EoMT does not use.
_BESIDE_THE_POINT = (
    "Can not add symbolic for `mmcv.ops",
    "Can not find mmcv.ops",
    "Failed to search registry with scope",
    "DeprecationWarning: get_onnx_config",
    "Backend manager of",
)


@dataclass(frozen=True)
class Deployed:
    """What `deploy` made.

    Attributes:
        files: All files, in the work folder.
        model: The file that runs: the engine, or the ONNX file.
        agreement: Share of the picture's pixels with the labels of PyTorch; None if the model
            could not be run here.
    """

    files: list[Path]
    model: Path
    agreement: float | None


def deploy(
    deploy_cfg: str | Path,
    model_cfg: str | Path,
    checkpoint: str | Path,
    image: str | Path,
    *,
    work_dir: str | Path,
    device: str = "cpu",
    data: Any = None,
    test_image: str | Path | None = None,
    show: bool = False,
) -> Deployed:
    """Export a model with MMDeploy, for ONNX Runtime or TensorRT.

    Without TensorRT and a GPU a TensorRT config still gives the ONNX file, from which the engine is
    built elsewhere.

    Args:
        deploy_cfg: A file of `configs/deploy`, or one's own in MMDeploy's dialect.
        model_cfg: The config that was trained with.
        checkpoint: Lean weights or a training checkpoint.
        image: A picture: half precision is measured on it.
        work_dir: Folder of the results; files of the same names are replaced.
        device: Where PyTorch and the exported model run, e.g. 'cpu' or 'cuda:0'.
        data: Description of one's own folders; goes into the model config written.
        test_image: Another picture to compare on.
        show: Show the pictures in windows as well.

    Raises:
        FileNotFoundError: If a file is missing.
        ImportError: If MMDeploy is missing; says how to get it.
        OSError: If the folder cannot be written.
        ValueError: If something contradicts something else.
    """
    require_mmdeploy()
    _check_files(deploy_cfg=deploy_cfg, model_cfg=model_cfg, checkpoint=checkpoint, image=image)
    if test_image is not None:
        _check_files(test_img=test_image)
    # Before the model is built, which may take long.
    folder = _writable(work_dir)
    plan = Config.fromfile(str(deploy_cfg))
    _check_plan(plan, str(deploy_cfg))
    cfg = deployable_config(Config.fromfile(str(model_cfg)), checkpoint, data=data)
    with _quiet_mmdeploy(), tempfile.TemporaryDirectory(prefix=".deploy-", dir=folder) as staging:
        model, agreement = _make(
            plan, cfg, str(checkpoint), str(image), staging, device, str(test_image or image), show
        )
        cfg.dump(Path(staging) / MODEL_CONFIG)
        names = sorted(path.name for path in Path(staging).iterdir())
        for name in names:
            os.replace(Path(staging) / name, folder / name)
    return Deployed([folder / name for name in names], folder / model, agreement)


def measure_deployed(
    deploy_cfg: str | Path,
    model_cfg: str | Path,
    model: str | Path,
    *,
    work_dir: str | Path,
    device: str = "cpu",
    data: Any = None,
    show_dir: str | None = None,
) -> dict[str, float]:
    """Measure a model that `deploy` made, by MMDeploy's own test runner.

    Args:
        deploy_cfg: The deploy config that it was made with.
        model_cfg: The model config that lies beside it (`model_config.py`).
        model: The ONNX file or the engine.
        work_dir: Folder of logs.
        device: Where it runs.
        data: Other folders than those in the model config.
        show_dir: Folder for painted predictions.

    Returns:
        Metrics by name, such as 'mIoU', in percent.

    Raises:
        FileNotFoundError: If a file is missing.
        ImportError: If MMDeploy is missing; says how to get it.
        ValueError: If something contradicts something else, or no dataset is given.
    """
    require_mmdeploy()
    _check_files(deploy_cfg=deploy_cfg, model_cfg=model_cfg, model=model)
    folder = _writable(work_dir)
    plan, cfg = Config.fromfile(str(deploy_cfg)), Config.fromfile(str(model_cfg))
    _check_plan(plan, str(deploy_cfg))
    if data is not None:
        set_data(cfg, data)
    with _quiet_mmdeploy():
        from mmdeploy.apis import build_task_processor

        task = build_task_processor(cfg, plan, device)
        backend_model = task.build_backend_model([str(model)], task.update_data_preprocessor)
        runner = task.build_test_runner(backend_model, str(folder), show_dir=show_dir)
        metrics: dict[str, float] = runner.test()
    return metrics


def _make(
    plan: Config,
    cfg: Config,
    checkpoint: str,
    image: str,
    staging: str,
    device: str,
    test_image: str,
    show: bool,
) -> tuple[str, float | None]:
    """Fills ``staging``; returns the name of the file that runs and the agreement."""
    from mmdeploy.apis import build_task_processor, torch2onnx
    from mmdeploy.apis.utils import to_backend
    from mmdeploy.backend.base import get_backend_manager
    from mmdeploy.backend.sdk.export_info import export2SDK
    from mmdeploy.utils import get_backend, get_ir_config

    from mmseg_eomt.deploy.mmdeploy.rewriters import wanted_precision

    backend = get_backend(plan).value
    if backend == "tensorrt" and not device.startswith("cuda"):
        device = "cuda:0"  # MMDeploy insists; without a GPU our task takes the CPU
    precision = wanted_precision(plan)
    # In this process: an error is then an error here, and not "failed. exit." of another.
    torch2onnx(
        image, staging, get_ir_config(plan)["save_file"], plan, cfg, checkpoint, device=device
    )
    export2SDK(plan, cfg, staging, pth=checkpoint, device=device)
    files = [str(Path(staging) / get_ir_config(plan)["save_file"])]
    runs = True
    if backend == "tensorrt" and not (
        torch.cuda.is_available() and get_backend_manager("tensorrt").is_available()
    ):
        runs = False
        _say(
            "No engine was built: it needs TensorRT and the GPU that it is for. Run this again "
            f"there, or tools/build_engine.py on {Path(files[0]).name}.",
            logging.WARNING,
        )
    else:
        files = list(to_backend(backend, files, staging, deploy_cfg=plan, device=device))
    task = build_task_processor(cfg, plan, device)
    models = {"pytorch": task.build_pytorch_model(checkpoint)}
    if runs:
        models[backend] = task.build_backend_model(files, task.update_data_preprocessor)
    labels = {}
    for name, model in models.items():
        inputs, _ = task.create_input(test_image)
        with torch.no_grad():
            result = model.test_step(inputs)[0]
        labels[name] = result.pred_sem_seg.data.cpu()
        task.visualize(
            test_image, result, str(Path(staging) / f"output_{name}.jpg"), name, show_result=show
        )
    if not runs:
        return Path(files[0]).name, None
    agreement = (labels["pytorch"] == labels[backend]).double().mean().item()
    if agreement < ENOUGH[precision] and not plan.codebase_config.get("with_argmax", True):
        _say(
            f"Only {agreement:.2%} of the labels of {test_image} agree with PyTorch's, fewer than "
            f"the {ENOUGH[precision]:.1%} expected of {precision}: test it on a dataset before you "
            "use it (tools/test_deployed.py).",
            logging.WARNING,
        )
    return Path(files[0]).name, agreement


def _check_files(**files: str | Path) -> None:
    for name, path in files.items():
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file ({name.replace('_', ' ')}).")


def _writable(work_dir: str | Path) -> Path:
    """The folder, made if needed, in which files can be written.

    Raises:
        OSError: If they cannot.
    """
    folder = Path(work_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            error.errno,
            f"{folder}: cannot be written ({error.strerror}). Give a folder of your own with "
            "--work-dir",
        ) from error
    return folder


def _check_plan(plan: Config, source: str) -> None:
    """A deploy config is checked for what this package needs in it.

    Raises:
        ValueError: If something is missing or unknown.
    """
    codebase, backend = plan.get("codebase_config") or {}, plan.get("backend_config") or {}
    if not codebase or not backend:
        raise ValueError(
            f"{source}: no deploy config, as it has no codebase_config and backend_config: give a "
            "file of configs/deploy."
        )
    if "mmseg_eomt.deploy.mmdeploy" not in codebase.get("module", []):
        raise ValueError(
            f"{source}: codebase_config.module is {codebase.get('module')}: add 'mmseg_eomt' and "
            "'mmseg_eomt.deploy.mmdeploy', which register EoMT with MMDeploy, or take a file of "
            "configs/deploy."
        )
    if backend.get("type") not in ("onnxruntime", "tensorrt"):
        raise ValueError(
            f"{source}: backend_config.type is {backend.get('type')!r}; allowed: onnxruntime, "
            "tensorrt."
        )
    opset = (plan.get("onnx_config") or plan.get("ir_config") or {}).get("opset_version", 11)
    if opset < 17:
        raise ValueError(
            f"{source}: onnx_config.opset_version is {opset}: give 17 or more, the first with "
            "LayerNormalization."
        )


@contextlib.contextmanager
def _quiet_mmdeploy() -> Iterator[None]:
    """Leaves out what MMDeploy says about parts that have nothing to do with an EoMT."""
    from mmdeploy.utils import get_root_logger

    loggers = [get_root_logger(), logging.getLogger("mmengine"), _current_logger()]

    def to_the_point(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(_BESIDE_THE_POINT)

    for logger in loggers:
        logger.addFilter(to_the_point)
    try:
        import mmseg_eomt.deploy.mmdeploy  # noqa: F401  (has things to say as well)

        yield
    finally:
        for logger in loggers:
            logger.removeFilter(to_the_point)


def _current_logger() -> Any:
    from mmengine.logging import MMLogger

    return MMLogger.get_current_instance()


def _say(message: str, level: int = logging.INFO) -> None:
    print_log(message, logger="current", level=level)


KEPT = (
    *("custom_imports", "default_scope", "env_cfg", "log_level"),
    *("test_pipeline", "test_dataloader", "test_cfg", "test_evaluator"),
)


def deployable_config(cfg: Config, checkpoint: str | Path, *, data: Any = None) -> Config:
    """Complete a config with what a checkpoint says, and leave training out.

    Classes, colours, channels and sizes are those of the checkpoint.

    Args:
        cfg: The config that was trained with; it is not changed.
        checkpoint: Lean weights or a training checkpoint.
        data: Description of one's own folders, for a later test; None keeps those of the config.

    Returns:
        A config with `model`, `data_preprocessor`, `test_pipeline`, `dataset_meta` and the test
        set.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If something contradicts something else.
    """
    cfg = copy.deepcopy(cfg)
    init_default_scope(cfg.get("default_scope", "mmseg"))
    if "test_dataloader" not in cfg or not cfg.test_dataloader:
        raise ValueError(
            f"{cfg.filename or 'the config'} has no test_dataloader, whose pipeline says how "
            "images are prepared: take the config that the model was trained with."
        )
    for name in LOADERS.values():
        if name != "test_dataloader":
            cfg.pop(name, None)
    found = model_of_checkpoint(cfg.model, checkpoint)
    cfg.model = found.model
    set_channels(cfg)
    if data is not None:
        set_data(cfg, data)
    if found.header is not None:
        _set_test_size(cfg, found.header, checkpoint)
    cfg.test_pipeline = copy.deepcopy(cfg.test_dataloader.dataset.pipeline)
    complete = Config({name: cfg[name] for name in KEPT if name in cfg}, filename=cfg.filename)
    complete.model = cfg.model
    # Where MMDeploy looks for the normalisation.
    complete.data_preprocessor = copy.deepcopy(cfg.model.data_preprocessor)
    if found.dataset_meta:
        complete.dataset_meta = found.dataset_meta
    return complete


def _set_test_size(cfg: Config, header: ModelHeader, checkpoint: str | Path) -> None:
    """Give the test pipeline the size that the weights were validated at."""
    own, given = header.test_size, test_size_of(cfg)
    if own == given:
        return
    if own is None or given is None or own[0] != own[1] or given[0] != given[1]:
        raise ValueError(
            f"{checkpoint}: validated with images resized to {own} (height, width; None keeps "
            f"their size), but the test pipeline of the config resizes to {given}: change it to "
            "that."
        )
    set_short_side(cfg, own[0])
    print_log(
        f"{checkpoint}: validated at a short side of {own[0]}, not at the {given[0]} of the "
        f"config: the deployed model takes {own[0]}.",
        logger="current",
        level=logging.WARNING,
    )
