"""Weights & Biases, with steps."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.visualization import BaseVisBackend
from mmseg.registry import VISBACKENDS
from numpy.typing import NDArray


@VISBACKENDS.register_module()
class WandbBackend(BaseVisBackend):  # type: ignore[misc]
    """Curves and pictures at their training step, online or offline.

    mmengine's own ignores the step, counts each picture as a step and uploads the code of the
    current folder. Here losses, metrics and pictures of one step share that step, and only
    numbers, pictures and the config are sent. Offline: ``init_kwargs=dict(mode='offline')`` or
    ``WANDB_MODE=offline``.

    Args:
        save_dir (str): Where wandb keeps its files.
        init_kwargs (dict, optional): Of ``wandb.init`` (``project``, ``name``, ``mode``, ...).

    Raises:
        ImportError: At first use, if wandb is not installed.
    """

    def __init__(self, save_dir: str, *, init_kwargs: dict[str, Any] | None = None) -> None:
        super().__init__(save_dir)
        self._init_kwargs = dict(init_kwargs or {})
        self._run: Any = None

    def _init_env(self) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError(
                "WandbBackend needs wandb: pip install wandb (or mmseg_eomt[wandb])."
            ) from error
        os.makedirs(self._save_dir, exist_ok=True)
        self._run = wandb.init(**{"dir": self._save_dir, **self._init_kwargs})
        # An own axis, so that values that come late are still drawn at their step.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def _started(self) -> Any:
        if self._run is None:
            self._init_env()
        return self._run

    @property
    def experiment(self) -> Any:
        """The wandb run."""
        return self._started()

    def add_config(self, config: Config, **kwargs: Any) -> None:
        """Records the config."""
        self._started().config.update(config.to_dict(), allow_val_change=True)

    def add_image(self, name: str, image: NDArray[np.uint8], step: int = 0, **kwargs: Any) -> None:
        """Records a picture ``uint8 [H, W, 3]`` (RGB) at ``step``."""
        run = self._started()
        import wandb

        run.log({name: wandb.Image(image), "step": step})

    def add_scalar(self, name: str, value: Any, step: int = 0, **kwargs: Any) -> None:
        """Records one number at ``step``."""
        self.add_scalars({name: value}, step)

    def add_scalars(
        self,
        scalar_dict: dict[str, Any],
        step: int = 0,
        file_path: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Records numbers at ``step``.

        Args:
            scalar_dict (dict): Names and numbers.
            step (int): Optimiser step.
            file_path (str, optional): Not used; other backends write to it.
        """
        numbers = {name: float(value) for name, value in scalar_dict.items()}
        self._started().log({**numbers, "step": step})

    def close(self) -> None:
        """Ends the run."""
        if self._run is not None:
            self._run.finish()
            self._run = None
