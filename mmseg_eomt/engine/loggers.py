"""MLflow and Weights & Biases as backends of mmengine's visualiser."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.visualization import BaseVisBackend
from mmseg.registry import VISBACKENDS
from numpy.typing import NDArray

# MLflow refuses metric names with other characters, and '%' stands in its own escapes.
ALLOWED = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-. :/")


@VISBACKENDS.register_module()
class MLflowBackend(BaseVisBackend):  # type: ignore[misc]
    """Curves, pictures and the config in an MLflow run.

    Without a server everything lies in the run folder: an SQLite file (MLflow has retired its
    file store) and a folder of artifacts, where mmengine's own writes to ``./mlruns`` and lets
    each picture overwrite the one before. Look at it with ``mlflow ui --backend-store-uri
    sqlite:///<save_dir>/mlflow.db``.

    Args:
        save_dir (str): Folder of the SQLite file and the artifacts.
        tracking_uri (str, optional): Of a server. Defaults to None, ``save_dir``.
        experiment_name (str): Defaults to 'mmseg_eomt'.
        run_name (str, optional): Shown for the run.
        tags (dict[str, str], optional): Added to the run.

    Raises:
        ImportError: At first use, if mlflow is not installed.
    """

    def __init__(
        self,
        save_dir: str,
        *,
        tracking_uri: str | None = None,
        experiment_name: str = "mmseg_eomt",
        run_name: str | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        super().__init__(save_dir)
        self._tracking_uri = tracking_uri
        self._experiment_name = experiment_name
        self._run_name, self._tags = run_name, tags
        self._client: Any = None
        self._run_id = ""

    def _init_env(self) -> None:
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise ImportError(
                "MLflowBackend needs mlflow: pip install mlflow (or mmseg_eomt[mlflow])."
            ) from error
        folder = Path(self._save_dir).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        local = self._tracking_uri is None
        uri = self._tracking_uri or f"sqlite:///{folder.as_posix()}/mlflow.db"
        # A client of its own: mlflow's global state belongs to the user's script.
        self._client = MlflowClient(tracking_uri=uri)
        experiment = self._client.get_experiment_by_name(self._experiment_name)
        if experiment is None:
            location = (folder / "mlflow_artifacts").as_uri() if local else None
            experiment_id = self._client.create_experiment(
                self._experiment_name, artifact_location=location
            )
        else:
            experiment_id = experiment.experiment_id
        run = self._client.create_run(experiment_id, run_name=self._run_name, tags=self._tags)
        self._run_id = run.info.run_id

    def _started(self) -> Any:
        if self._client is None:
            self._init_env()
        return self._client

    @property
    def experiment(self) -> Any:
        """The MLflow client."""
        return self._started()

    @property
    def run_id(self) -> str:
        """Of the MLflow run."""
        self._started()
        return self._run_id

    def add_config(self, config: Config, **kwargs: Any) -> None:
        """Records the config as the artifact ``config.py``.

        As parameters it would break MLflow's limit on their length.
        """
        self._started().log_text(self._run_id, config.pretty_text, "config.py")

    def add_image(self, name: str, image: NDArray[np.uint8], step: int = 0, **kwargs: Any) -> None:
        """Records a picture ``uint8 [H, W, 3]`` (RGB) as ``pictures/<name>_<step>.png``."""
        safe = name.replace("/", "_")
        self._started().log_image(self._run_id, image, f"pictures/{safe}_{step:06d}.png")

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
        for name, value in scalar_dict.items():
            key = "".join(letter if letter in ALLOWED else "_" for letter in name)
            self._started().log_metric(self._run_id, key, float(value), step=step)

    def close(self) -> None:
        """Ends the run."""
        if self._client is not None:
            self._client.set_terminated(self._run_id)
            self._client = None


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
