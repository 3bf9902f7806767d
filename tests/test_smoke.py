"""Train, test and predict on a few tiny pictures, through the tools.

Part of the suite, and all that runs in the environment of the other package family.
"""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmseg_eomt.config_files import config_path

ROOT = Path(__file__).parents[1]

OWN_CONFIG = """
_base_ = [{base!r}]
architecture = dict(_delete_=True, embed_dims=48, depth=4, num_heads=3, patch_size=16)
model = dict(
    backbone=dict(arch=architecture, image_size=64, pretrained=None, num_joint_blocks=2),
    decode_head=dict(num_queries=8, loss_decode=dict(num_points=64)),
)
"""


def tool(name: str, *arguments: str | Path) -> None:
    """Run a tool in this process: importing PyTorch for each would take most of the time."""
    main = runpy.run_path(str(ROOT / "tools" / name))["main"]
    assert not main([str(argument) for argument in arguments])


@pytest.mark.smoke
def test_two_steps_of_training_then_test_and_predict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tool("make_dataset.py", "scenes", "--images", "4", "--val", "2", "--size", "96x80")
    data = tmp_path / "scenes" / "data.yaml"
    config = tmp_path / "own.py"
    config.write_text(OWN_CONFIG.format(base=config_path("eomt/dinov3_vits16_folder.py")))
    options = ["--cfg-options", "train_cfg.max_iters=2", "train_cfg.global_batch_size=2"]
    for split in ("train", "val", "test"):
        loader = f"{split}_dataloader"
        options += [f"{loader}.num_workers=0", f"{loader}.persistent_workers=False"]
    options += ["train_dataloader.dataset.pipeline.5.size=(64,64)"]
    options += [f"{split}_dataloader.dataset.pipeline.1.size=64" for split in ("val", "test")]
    run = tmp_path / "run"
    tool("train.py", config, "--data", data, "--work-dir", run, *options)
    weights = run / "exported" / "last.safetensors"
    assert weights.is_file()

    # The training checkpoint goes through mmengine's torch.load, which compat has to mend.
    capfd.readouterr()
    (checkpoint,) = run.glob("iter_2.pth")
    tool("test.py", config, checkpoint, "--data", data, *options)
    assert "mIoU" in capfd.readouterr().out

    images = tmp_path / "scenes" / "val" / "images"
    tool("predict.py", weights, images, "--out", tmp_path / "out")
    image = next(images.iterdir())
    mask = tmp_path / "out" / "masks" / f"{image.stem}.png"
    with Image.open(image) as picture, Image.open(mask) as prediction:
        assert prediction.size == picture.size
        assert np.asarray(prediction).max() < 20

    # The config that the run leaves behind is one that MMSegmentation's own tools can use.
    from mmseg.apis import MMSegInferencer

    inferencer = MMSegInferencer(model=str(run / "own.py"), weights=str(checkpoint), device="cpu")
    with Image.open(image) as picture:
        prediction = inferencer(str(image), return_datasamples=False)["predictions"]
        assert prediction.shape == (picture.height, picture.width)
