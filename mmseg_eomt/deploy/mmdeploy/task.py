"""MMDeploy's segmentation task, for which an EoMT is read, tested and drawn as in this package.

Shape legend: B images, C channels, H/W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmdeploy.codebase.base.runner import DeployTestRunner
from mmdeploy.codebase.mmseg.deploy.segmentation import MMSEG_TASK, Segmentation
from mmdeploy.codebase.mmseg.deploy.segmentation_model import build_segmentation_model
from mmdeploy.utils import (
    Backend,
    Task,
    get_backend,
    get_codebase_config,
    get_input_shape,
    is_dynamic_shape,
)
from mmengine.dataset import Compose
from mmseg.registry import MODELS
from mmseg.visualization import SegLocalVisualizer
from torch import Tensor, nn

from mmseg_eomt.checkpoints.weights_file import load_state
from mmseg_eomt.deploy.mmdeploy.backend_segmentor import MODEL_TYPE
from mmseg_eomt.deploy.mmdeploy.model_config import model_of_checkpoint
from mmseg_eomt.images.reading import as_rgb, read_image
from mmseg_eomt.images.windows import cover, wished_window
from mmseg_eomt.models.eomt_segmentor import EoMTSegmentor, checked_test_cfg

ANY_LENGTH = 2**20
"""Of the long side: no image has one, so that the short side alone decides."""
META_KEYS = ("img_shape", "pad_shape", "ori_shape", "img_norm_cfg", "scale_factor")


def sdk_steps(model_cfg: Any, *, fixed: Sequence[int] | None) -> list[dict[str, Any]]:
    """Steps of the SDK that come closest to the test pipeline of an EoMT.

    The SDK knows no windows: it runs the graph once, on the whole image. For a static graph the
    image is stretched to its size; for another its short side becomes the model's. It resizes
    without antialiasing.

    Args:
        model_cfg (Config): With ``test_pipeline`` and ``model.data_preprocessor``.
        fixed (Sequence[int], optional): (width, height) of a static graph.

    Raises:
        ValueError: If the pipeline's resize cannot be said in the SDK's words.
    """
    steps: list[dict[str, Any]] = [{"type": "LoadImageFromFile"}]
    if fixed is not None:
        steps.append({"type": "Resize", "size": [int(s) for s in fixed], "keep_ratio": False})
    else:
        steps += _resize_steps(model_cfg.test_pipeline)
    preprocessor = model_cfg.model.data_preprocessor
    channels = model_cfg.model.backbone.get("in_channels", 3)
    mean, std = preprocessor.get("mean"), preprocessor.get("std")
    steps += [
        {
            "type": "Normalize",
            "mean": [0.0] * channels if mean is None else list(mean),
            "std": [1.0] * channels if std is None else list(std),
            "to_rgb": bool(preprocessor.get("bgr_to_rgb", False)),
        },
        {"type": "ImageToTensor", "keys": ["img"]},
        {"type": "Collect", "keys": ["img"], "meta_keys": list(META_KEYS)},
    ]
    return steps


def _resize_steps(pipeline: Sequence[Any]) -> list[dict[str, Any]]:
    for step in pipeline:
        kind = str(step["type"]).rsplit(".", 1)[-1]
        if kind == "ResizeShortSide":
            size = step["size"]
            height, width = (size, size) if isinstance(size, int) else size
            if height != width:
                raise ValueError(
                    f"test_pipeline: ResizeShortSide covers {height}x{width} (height x width), "
                    "which the SDK of MMDeploy cannot do with any image: take a static deploy "
                    f"config with onnx_config.input_shape=[{width}, {height}]."
                )
            return [{"type": "Resize", "size": [ANY_LENGTH, height], "keep_ratio": True}]
        if kind == "Resize":
            size = step.get("scale") or step.get("size")
            ratio = bool(step.get("keep_ratio", False))
            return [{"type": "Resize", "size": [int(s) for s in size], "keep_ratio": ratio}]
    return []


@MMSEG_TASK.register_module(Task.SEGMENTATION.value, force=True)
class EoMTSegmentation(Segmentation):  # type: ignore[misc]
    """Takes the place of MMDeploy's task and leaves all models but EoMT to it.

    Args:
        model_cfg (Config): The model config.
        deploy_cfg (Config): The deploy config.
        device (str): Where models run.
    """

    def __init__(self, model_cfg: Any, deploy_cfg: Any, device: str) -> None:
        super().__init__(model_cfg, deploy_cfg, device)
        kind = MODELS.get(model_cfg.model.type)
        self.is_eomt = isinstance(kind, type) and issubclass(kind, EoMTSegmentor)
        if (
            self.is_eomt
            and get_backend(deploy_cfg) == Backend.TENSORRT
            and not torch.cuda.is_available()
        ):
            # MMDeploy insists on a GPU's name here, which exporting and PyTorch can do without.
            self.device = "cpu"

    def build_pytorch_model(
        self, model_checkpoint: str | None = None, cfg_options: Any = None, **kwargs: Any
    ) -> nn.Module:
        """The segmentor with the weights of a file, prepared for predictions only.

        Args:
            model_checkpoint (str, optional): Lean weights or a training checkpoint. What the model
                config leaves open follows from it.
            cfg_options (dict, optional): Not used.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it does not fit the config.
        """
        if not self.is_eomt or model_checkpoint is None:
            return super().build_pytorch_model(  # type: ignore[no-any-return]
                model_checkpoint, cfg_options, **kwargs
            )
        found = model_of_checkpoint(self.model_cfg.model, model_checkpoint)
        model = MODELS.build(found.model)
        load_state(model, found.state, source=model_checkpoint)
        model.switch_to_deploy()
        return model.to(self.device).eval()  # type: ignore[no-any-return]

    def build_backend_model(
        self,
        model_files: Sequence[str] | None = None,
        data_preprocessor_updater: Callable[..., Any] | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        """The exported model behind the interface of a segmentor.

        Args:
            model_files (Sequence[str]): Its files.
            data_preprocessor_updater (Callable, optional): Changes the preprocessor's config.
        """
        if not self.is_eomt or get_backend(self.deploy_cfg) == Backend.SDK:
            return super().build_backend_model(  # type: ignore[no-any-return]
                model_files, data_preprocessor_updater, **kwargs
            )
        preprocessor = self.model_cfg.model.data_preprocessor
        if data_preprocessor_updater is not None:
            preprocessor = data_preprocessor_updater(preprocessor)
        deploy_cfg = copy.deepcopy(self.deploy_cfg)
        deploy_cfg.codebase_config.model_type = MODEL_TYPE
        model = build_segmentation_model(
            model_files,
            self.model_cfg,
            deploy_cfg,
            device=self.device,
            data_preprocessor=preprocessor,
            test_cfg=self.model_cfg.model.get("test_cfg"),
            **kwargs,
        )
        return model.to(self.device).eval()  # type: ignore[no-any-return]

    def create_input(
        self,
        imgs: Any,
        input_shape: Sequence[int] | None = None,
        data_preprocessor: nn.Module | None = None,
    ) -> tuple[dict[str, Any], Any]:
        """Images as the test pipeline gives them and, to export with, a window of the first.

        Args:
            imgs (str | ndarray | list): Paths, or ``uint8 [H, W, C]`` in BGR order.
            input_shape (Sequence[int], optional): (width, height) of a static graph.
            data_preprocessor (nn.Module, optional): That of the segmentor, to export with.

        Returns:
            tuple: ``inputs`` and ``data_samples`` of all images; and with a preprocessor
            ``[1, C, H, W]``, normalised, else the ``inputs``.
        """
        if not self.is_eomt:
            return super().create_input(  # type: ignore[no-any-return]
                imgs, input_shape, data_preprocessor
            )
        images = imgs if isinstance(imgs, (list, tuple)) else [imgs]
        channels = self.model_cfg.model.backbone.get("in_channels", 3)
        steps = Compose([s for s in self.model_cfg.test_pipeline if not _reads_files(s)])
        data: dict[str, Any] = {"inputs": [], "data_samples": []}
        for image in images:
            path = image if isinstance(image, (str, Path)) else ""
            pixels = read_image(str(path), channels=channels) if path else image
            size = pixels.shape[:2]
            packed = steps(
                {"img": pixels, "img_path": str(path), "img_shape": size, "ori_shape": size}
            )
            for name, part in packed.items():
                data[name].append(part)
        if data_preprocessor is None:
            return data, data["inputs"]
        normalised = data_preprocessor(data, False)
        return normalised, self._first_window(normalised["inputs"][0], input_shape)

    def _first_window(self, image: Tensor, input_shape: Sequence[int] | None) -> Tensor:
        """First window ``[1, C, H, W]`` of ``image [C, h, w]``, at the size of a static graph."""
        canvas = (image.shape[-2], image.shape[-1])
        test_cfg = checked_test_cfg(self.model_cfg.model.get("test_cfg"))
        (height, width), _ = cover(canvas, wished_window(test_cfg, canvas))
        window = image[None, :, :height, :width]
        if input_shape is not None and not is_dynamic_shape(self.deploy_cfg):
            size = (int(input_shape[1]), int(input_shape[0]))
            if size != (height, width):
                window = F.interpolate(window, size, mode="bilinear", align_corners=False)
        return window

    def visualize(
        self,
        image: Any,
        result: Any,
        output_file: str,
        window_name: str = "",
        show_result: bool = False,
        opacity: float = 0.5,
        **kwargs: Any,
    ) -> None:
        """Paints a prediction over its image.

        Args:
            image (str | ndarray): The image; an array in RGB order.
            result (SegDataSample): The prediction.
            output_file (str): The picture.
            window_name (str): Title of a window.
            show_result (bool): Whether to show it in a window as well.
            opacity (float): Of the class colours.
        """
        if not self.is_eomt:
            super().visualize(
                image, result, output_file, window_name, show_result, opacity, **kwargs
            )
            return
        visualizer = self._in_class_colours(SegLocalVisualizer(alpha=opacity))
        if isinstance(image, str):
            channels = self.model_cfg.model.backbone.get("in_channels", 3)
            image = np.ascontiguousarray(as_rgb(read_image(image, channels=channels)))
        visualizer.add_datasample(
            window_name or Path(output_file).stem,
            image,
            data_sample=result.cpu(),
            draw_gt=False,
            show=show_result,
            out_file=output_file,
        )

    def get_visualizer(self, name: str, save_dir: str) -> Any:
        """A visualizer that writes into ``save_dir``, in the colours of the model's classes."""
        if not self.is_eomt:
            return super().get_visualizer(name, save_dir)
        return self._in_class_colours(
            # As the current instance, which mmseg's hook asks for; one a folder.
            SegLocalVisualizer.get_instance(
                f"{name} {save_dir}", vis_backends=[{"type": "LocalVisBackend"}], save_dir=save_dir
            )
        )

    def _in_class_colours(self, visualizer: Any) -> Any:
        meta = self.model_cfg.get("dataset_meta")
        if meta:
            visualizer.dataset_meta = {
                "classes": list(meta["classes"]),
                "palette": [list(colour) for colour in meta["palette"]],
            }
        return visualizer

    def build_test_runner(
        self,
        model: nn.Module,
        work_dir: str,
        log_file: str | None = None,
        show: bool = False,
        show_dir: str | None = None,
        wait_time: int = 0,
        interval: int = 1,
        dataloader: Any = None,
    ) -> Any:
        """A runner that tests a model on the test set of the model config.

        Args:
            model (nn.Module): Of :meth:`build_backend_model` or :meth:`build_pytorch_model`.
            work_dir (str): Folder of logs.
            log_file (str, optional): A log file.
            show (bool): Whether to show predictions in a window.
            show_dir (str, optional): Folder for painted predictions.
            wait_time (int): Seconds a window stays.
            interval (int): Paint every so many batches.
            dataloader (dict | DataLoader, optional): Other data than the test set.
        """
        if not self.is_eomt:
            return super().build_test_runner(
                model, work_dir, log_file, show, show_dir, wait_time, interval, dataloader
            )
        # MMDeploy hands mmseg's hook an argument that it does not have.
        cfg = copy.deepcopy(self.model_cfg)
        cfg.default_hooks = {
            "visualization": {
                "type": "SegVisualizationHook",
                "draw": show or show_dir is not None,
                "interval": interval,
                "show": show,
                "wait_time": wait_time,
            }
        }
        loader = self.build_dataloader(cfg.test_dataloader if dataloader is None else dataloader)
        return DeployTestRunner(
            model=model,
            work_dir=work_dir,
            log_file=log_file,
            device=self.device,
            visualizer=self.get_visualizer("test", show_dir or work_dir),
            default_hooks=cfg.default_hooks,
            test_dataloader=loader,
            test_cfg=cfg.test_cfg,
            test_evaluator=cfg.test_evaluator,
            default_scope="mmseg",
        )

    def get_preprocess(self, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        """What MMDeploy's SDK does with an image."""
        if not self.is_eomt:
            return super().get_preprocess(*args, **kwargs)  # type: ignore[no-any-return]
        shape = None if is_dynamic_shape(self.deploy_cfg) else get_input_shape(self.deploy_cfg)
        return sdk_steps(self.model_cfg, fixed=shape)

    def get_postprocess(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What MMDeploy's SDK does with the output of the graph."""
        if not self.is_eomt:
            return super().get_postprocess(*args, **kwargs)  # type: ignore[no-any-return]
        with_argmax = get_codebase_config(self.deploy_cfg).get("with_argmax", True)
        classes = self.model_cfg.model.decode_head.num_classes
        return {
            "type": "ResizeMask",
            "params": {"num_classes": classes, "with_argmax": bool(with_argmax)},
        }


def _reads_files(step: Any) -> bool:
    return str(step["type"]).rsplit(".", 1)[-1].startswith("Load")
