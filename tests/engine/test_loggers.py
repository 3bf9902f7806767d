from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config

from mmseg_eomt.engine.loggers import MLflowBackend, WandbBackend


@pytest.mark.parametrize(
    ("backend", "package"), [(WandbBackend, "wandb"), (MLflowBackend, "mlflow")]
)
def test_missing_package_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: type, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        backend(str(tmp_path)).add_scalar("loss", 1.0, step=1)


def test_wandb_offline_keeps_the_step_of_numbers_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    backend = WandbBackend(str(tmp_path), init_kwargs={"mode": "offline", "project": "toy"})
    backend.add_config(Config({"lr": 1e-4, "nested": {"a": [1, 2]}}))
    backend.add_scalars({"loss": 2.0, "lr_head": np.float64(1e-4)}, step=50)
    backend.add_scalars({"mIoU": 12.5}, step=100)
    backend.add_image("predictions", np.full((4, 6, 3), 200, dtype=np.uint8), step=100)
    summary = dict(backend.experiment.summary)
    assert summary["step"] == 100
    assert summary["mIoU"] == 12.5
    assert summary["loss"] == 2.0
    backend.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert any(path.suffix == ".png" and path.parent.name == "images" for path in files)
    assert not any(path.suffix == ".py" for path in files)  # no code is collected


def test_mlflow_keeps_everything_in_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    folder = tmp_path / "run"
    backend = MLflowBackend(str(folder))
    backend.add_config(Config({"lr": 1e-4}))
    backend.add_scalars({"loss": 2.0, "IoU (road, %)": 3.0}, step=50)
    backend.add_scalars({"loss": 1.0}, step=100)
    for step in (50, 100):
        backend.add_image("predictions", np.zeros((4, 6, 3), dtype=np.uint8), step=step)
    client, run_id = backend.experiment, backend.run_id
    history = client.get_metric_history(run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(50, 2.0), (100, 1.0)]
    backend.close()
    assert client.get_run(run_id).info.status == "FINISHED"
    assert (folder / "mlflow.db").is_file()
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert {"predictions_000050.png", "predictions_000100.png", "config.py"} <= names
    assert list(elsewhere.iterdir()) == []
