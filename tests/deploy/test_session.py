"""A session gives the labels of the model it was exported from, and imports no PyTorch."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmseg_eomt import export_onnx, load_model
from mmseg_eomt.deploy import Session
from tests.deploy.lively import CLASSES, lively_weights, picture

WINDOW = 40

# Programs may use what mmseg_eomt needs without PyTorch, and nothing else.
BLOCKER = """
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "mmengine", "mmcv", "mmseg", "timm"}:
            raise ImportError(name + " is not there")

sys.meta_path.insert(0, Blocker())
"""
ALONE = f"""
import sys
{BLOCKER}
import numpy as np
from mmseg_eomt.deploy import Session
session = Session(sys.argv[1])
np.save(sys.argv[3], session.predict(sys.argv[2]))
assert "torch" not in sys.modules
"""


def make(folder: Path, name: str, *, weights: dict[str, Any] | None = None, **options: Any) -> Path:
    checkpoint = folder / f"{name}.safetensors"
    changes = {"test_size": (WINDOW, WINDOW), **(weights or {})}
    lively_weights(checkpoint, **changes)
    export_onnx(folder / f"{name}.onnx", checkpoint=checkpoint, verify=False, **options)
    return folder / f"{name}.onnx"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(scope="module")
def batched(folder: Path) -> Path:
    """The default export: any batch, one size."""
    return make(folder, "batched")


@pytest.fixture(scope="module")
def bytes_in(folder: Path) -> Path:
    """A fixed batch of three, bytes in and ids out."""
    return make(
        folder, "bytes", dynamic="", batch_size=3, include_preprocessing=True, channel_order="bgr"
    )


@pytest.fixture(scope="module")
def labels_only(folder: Path) -> Path:
    return make(folder, "labels", outputs="labels", dynamic="")


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    assert found.shape == expected.shape and found.dtype == np.int64
    return bool((found == expected).mean() >= 0.9999)


# One window; 4:3 and upright, two windows; long, seven; larger and smaller than the window.
SIZES = [(40, 40), (30, 40), (91, 60), (40, 257), (333, 250), (9, 11)]


@pytest.mark.parametrize("name", ["batched", "bytes_in"])
def test_labels_are_those_of_the_model(name: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(name)
    model, session = load_model(path.with_suffix(".safetensors"), device="cpu"), Session(path)
    images = [picture(size, seed=seed) for seed, size in enumerate(SIZES)]
    expected = [mask.numpy() for mask in model.predict_batch(images)]
    assert len(np.unique(np.concatenate([mask.ravel() for mask in expected]))) >= 3
    for image, one, many, mask in zip(
        images, map(session.predict, images), session.predict_batch(images), expected, strict=True
    ):
        assert same(one, mask), image.size
        np.testing.assert_array_equal(one, many)
    assert session.predict_batch([]) == []
    assert session.classes == model.classes == CLASSES
    assert session.palette == model.palette


def test_scores_are_those_of_the_model(batched: Path) -> None:
    model = load_model(batched.with_suffix(".safetensors"), device="cpu")
    model.segmentor.test_cfg["return_scores"] = True
    image = picture((75, 50))
    found: dict[str, Any] = {}
    store = model.segmentor.store_result

    def keep(sample: Any, views: Any) -> None:
        store(sample, views)
        found["scores"] = sample.seg_logits.data.numpy()

    model.segmentor.store_result = keep
    model.predict(image)
    scores = Session(batched).scores(image)
    np.testing.assert_allclose(scores, found["scores"], atol=2e-5 * found["scores"].max())


def test_any_size_where_height_and_width_are_open(folder: Path) -> None:
    path = make(
        folder,
        "whole",
        weights={"test_mode": "whole", "test_size": None},
        dynamic="batch,height,width",
        height=40,
        width=48,
    )
    model, session = load_model(path.with_suffix(".safetensors"), device="cpu"), Session(path)
    for size in ((40, 48), (33, 50), (64, 32)):
        image = picture(size)
        assert same(session.predict(image), model.predict(image).numpy())


def test_files_are_turned_and_grey_is_taken_as_colour(batched: Path, tmp_path: Path) -> None:
    model = load_model(batched.with_suffix(".safetensors"), device="cpu")
    session = Session(batched)
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture((50, 70)).save(turned, exif=exif, quality=95)
    grey = tmp_path / "grey.png"
    picture((50, 70)).convert("L").save(grey)
    for path in (turned, grey):
        mask = session.predict(path)
        assert same(mask, model.predict(path).numpy())
    assert session.predict(turned).shape == (70, 50)
    overlay = session.overlay(turned)
    assert overlay.size == (50, 70)
    assert np.array_equal(np.asarray(overlay), np.asarray(model.overlay(turned)))


def test_four_channels(folder: Path) -> None:
    four = {"in_channels": 4, "mean": (90.0,) * 4, "std": (50.0,) * 4}
    path = make(folder, "four", weights=four, include_preprocessing=True)
    bands = np.asarray(picture((50, 70)))
    bands = np.concatenate((bands, bands[..., :1]), axis=2)
    model = load_model(path.with_suffix(".safetensors"), device="cpu")
    assert same(Session(path).predict(bands), model.predict(bands).numpy())


def test_a_program_without_pytorch(batched: Path, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    picture((60, 91)).save(image)
    out = tmp_path / "labels.npy"
    root = str(Path(__file__).parents[2])
    subprocess.run(
        [sys.executable, "-c", ALONE, str(batched), str(image), str(out)], check=True, cwd=root
    )
    np.testing.assert_array_equal(np.load(out), Session(batched).predict(image))


@pytest.mark.parametrize("module", ["tensorrt", "triton"])
def test_engines_and_triton_need_no_pytorch(module: str) -> None:
    """Engines are built, run and served without it."""
    code = f"import sys\n{BLOCKER}\nimport mmseg_eomt.deploy.{module}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_program_without_this_package(folder: Path, tmp_path: Path) -> None:
    """The program of docs/deploy.md."""
    text = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (code,) = (block for block in blocks if "InferenceSession" in block)
    blocker = BLOCKER.replace("{", '{"mmseg_eomt", ', 1)
    path = make(folder, "model", include_preprocessing=True)
    image = picture((WINDOW, WINDOW))
    image.save(tmp_path / "photo.jpg", quality=95)
    (tmp_path / "model.onnx").write_bytes(path.read_bytes())
    saved = (
        f"import sys\n{blocker}\n{code}\nnp.save('ids.npy', ids[0])\nassert names == {CLASSES!r}"
    )
    subprocess.run([sys.executable, "-c", saved], check=True, cwd=tmp_path)
    expected = Session(path).predict(tmp_path / "photo.jpg")
    np.testing.assert_array_equal(np.load(tmp_path / "ids.npy"), expected)


def test_labels_alone_do_for_images_of_the_models_size_only(labels_only: Path) -> None:
    session = Session(labels_only)
    model = load_model(labels_only.with_suffix(".safetensors"), device="cpu")
    image = picture((WINDOW, WINDOW))
    assert same(session.predict(image), model.predict(image).numpy())
    with pytest.raises(ValueError, match=r"takes 2 windows .* --outputs both"):
        session.predict(picture((40, 60)))
    with pytest.raises(ValueError, match="gives labels, no scores"):
        session.scores(image)


def test_a_size_that_is_not_the_models_is_named(folder: Path) -> None:
    path = make(folder, "fixed", weights={"test_mode": "whole", "test_size": None}, height=40,
                width=48)  # fmt: skip
    with pytest.raises(ValueError, match=r"windows of 50 x 70, but the height .* always 40"):
        Session(path).predict(picture((50, 70)))


def test_another_exported_size_is_what_windows_are_cut_in(folder: Path) -> None:
    path = make(folder, "wide", height=40, width=72)
    model = load_model(path.with_suffix(".safetensors"), device="cpu")
    model.header = model.header.replace(test_size=(40, 72))
    model.segmentor.test_cfg["window_size"] = (40, 72)
    image = picture((50, 120))
    assert same(Session(path).predict(image), model.predict(image).numpy())


def test_unfit_arguments_are_errors(batched: Path, bytes_in: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file.*export\.py"):
        Session(tmp_path / "none.onnx")
    with pytest.raises(ValueError, match=r"ends in \.onnx or \.engine"):
        Session(batched.with_suffix(".safetensors"))
    (tmp_path / "text.onnx").write_text("nothing")
    with pytest.raises(ValueError, match=r"text\.onnx: ONNX Runtime cannot load it"):
        Session(tmp_path / "text.onnx")
    with pytest.raises(ValueError, match=r"has no NoProvider here; it has .*CPU"):
        Session(batched, providers=["NoProvider"])
    with pytest.raises(ValueError, match="threads is 0"):
        Session(batched, threads=0)
    with pytest.raises(ValueError, match="batch is always 3"):
        Session(bytes_in, window_batch=2)
    with pytest.raises(ValueError, match="give a path, PIL image or array"):
        Session(batched).predict(3)  # type: ignore[arg-type]


def test_a_missing_runtime_is_named_with_its_mend(
    batched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match="pip install onnxruntime"):
        Session(batched)


LARGE = """
import resource, sys
import numpy as np
from mmseg_eomt.deploy import Session
session = Session(sys.argv[1])
image = np.kron(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8),
                np.ones((100, 100, 1), np.uint8))
session.predict(image[:400, :600])  # what the runtime itself takes
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert session.predict(image).shape == (4000, 6000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory_of_a_large_image_is_bounded(folder: Path) -> None:
    """150 classes at 6000 x 4000 pixels would be 14 GB of scores."""
    classes = tuple(f"c{index}" for index in range(150))
    weights = {"classes": classes, "class_ids": tuple(range(150)), "palette": ((1, 2, 3),) * 150}
    path = make(folder, "many", weights={**weights, "test_size": (256, 256)}, height=256, width=256)
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(path)], check=True, capture_output=True, text=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    unit = 1024 if sys.platform != "darwin" else 1
    grown = int(done.stdout) * unit / 2**20
    # Labels int64 and int32 (275 MiB), scores of two windows (75), of a strip, and the image.
    assert grown < 800, f"{grown:.0f} MiB"


def test_the_tool_predicts_files_without_pytorch(batched: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for index, size in enumerate(((60, 91), (40, 40))):
        picture(size, seed=index).save(images / f"{index}.png")
    root = Path(__file__).parents[2]
    code = f"import sys, runpy\n{BLOCKER}\nsys.argv = sys.argv[1:]\n"
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    tool = [sys.executable, "-c", code, "tools/predict.py"]
    subprocess.run(
        [*tool, str(batched), str(images), "--out", str(out), "--device", "cpu"],
        check=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    for index in range(2):
        mask = np.asarray(Image.open(out / "masks" / f"{index}.png"))
        expected = Session(batched).predict(images / f"{index}.png")
        np.testing.assert_array_equal(mask, expected)
        assert (out / "overlays" / f"{index}.png").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "fp16"], "--precision is for checkpoints"),
        (["--compile"], "--compile is for checkpoints"),
        (["--device", "tpu"], "--device is 'tpu'; for exported models it is cpu or cuda"),
    ],
)
def test_the_tool_refuses_options_of_checkpoints(
    options: list[str], message: str, batched: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "predict.py"))["main"]
    assert main([str(batched), "images", "--out", "out", *options]) == 2
    assert message in capsys.readouterr().err
