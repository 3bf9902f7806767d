from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import mmseg_eomt.deploy.onnx_file
from mmseg_eomt import SegmentationModel, export_onnx, load_model
from mmseg_eomt.deploy.agreement import LIMITS, Limits
from mmseg_eomt.deploy.exporter import DeployGraph
from mmseg_eomt.deploy.metadata import deploy_metadata
from mmseg_eomt.deploy.onnx_graph import array_of
from mmseg_eomt.deploy.pictures import graph_input, made_pictures, network_input
from tests.deploy.exporting import check_operators, metadata_of, run_file
from tests.deploy.lively import CLASSES, lively_header, lively_segmentor, lively_weights, picture

# A program of a user: neither PyTorch nor the mm packages nor this one are there.
ALONE = """
import json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "mmengine", "mmcv", "mmseg", "timm", "mmseg_eomt"}:
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, Blocker())
import numpy as np, onnxruntime
path, images, out = sys.argv[1:]
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
labels = session.run(["labels"], {"images": np.load(images)})[0]
np.save(out, labels)
known = session.get_modelmeta().custom_metadata_map
names = dict(zip(json.loads(known["class_ids"]), json.loads(known["classes"])))
print(json.dumps([names[value] for value in np.unique(labels).tolist()]))
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "lively.safetensors"
    lively_weights(path, "dinov2", image_size=(32, 32), test_size=(40, 40))
    return path


@pytest.fixture(scope="module")
def exported(weights: Path) -> Path:
    """As files of a user: uint8 RGB in, class ids out, one size."""
    out = weights.with_name("lively.onnx")
    export_onnx(out, checkpoint=weights, include_preprocessing=True, dynamic="")
    return out


def test_labels_of_a_window_are_what_the_model_predicts(weights: Path, exported: Path) -> None:
    (picture,) = made_pictures(1, (40, 40), channels=3)
    found = run_file(exported, graph_input([picture], metadata_of(exported)))
    expected = load_model(weights, device="cpu").predict(picture[..., ::-1].copy()).numpy()
    assert len(np.unique(expected)) >= 3
    assert (found["labels"][0] == expected).mean() >= 0.9999
    assert found["scores"].shape == (1, len(CLASSES), 40, 40)
    assert found["scores"].dtype == np.float32


def test_a_program_with_onnx_runtime_alone_uses_the_file(exported: Path, tmp_path: Path) -> None:
    metadata = metadata_of(exported)
    images = graph_input(made_pictures(1, (40, 40), channels=3), metadata)
    np.save(tmp_path / "images.npy", images)
    arguments = [exported, tmp_path / "images.npy", tmp_path / "labels.npy"]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *map(str, arguments)], cwd=tmp_path, text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    labels = np.load(tmp_path / "labels.npy")
    np.testing.assert_array_equal(labels, run_file(exported, images)["labels"])
    assert json.loads(done.stdout) == [CLASSES[value] for value in np.unique(labels).tolist()]


def test_file_says_what_it_is(exported: Path) -> None:
    metadata = metadata_of(exported)
    assert (metadata.height, metadata.width) == (40, 40)  # the window of the test
    assert metadata.dynamic == ()
    assert metadata.input.dtype == "uint8"
    assert metadata.label_values == "id"
    assert {"torch", "onnx", "mmseg_eomt"} <= set(metadata.versions)


def test_graph_has_standard_operators_and_nothing_that_runtimes_stumble_over(
    exported: Path,
) -> None:
    model = onnx.load(exported)
    check_operators(model)
    operators = [node.op_type for node in model.graph.node]
    # Two layer norms a block, one before the heads (used for both), one in the upscale block.
    assert operators.count("LayerNormalization") >= 5
    assert operators.count("Softmax") == 3  # of two blocks and of the classes
    leaks = model.SerializeToString()
    assert b"site-packages" not in leaks
    assert str(Path(__file__).parents[2]).encode() not in leaks


def test_position_table_of_one_size_is_a_constant(exported: Path) -> None:
    model = onnx.load(exported)
    # 5 x 5 patches of 8 pixels, 16 channels; stored are 4 x 4.
    sizes = [tuple(tensor.dims) for tensor in model.graph.initializer]
    assert any(size[-2:] == (25, 16) for size in sizes)
    assert not any(size[-2:] == (16, 16) and len(size) == 3 for size in sizes)
    assert "Range" not in {node.op_type for node in model.graph.node}


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 23])
def test_oldest_and_newest_opset(weights: Path, tmp_path: Path, opset: int) -> None:
    result = export_onnx(tmp_path / "m.onnx", checkpoint=weights, opset_version=opset)
    assert [entry.version for entry in onnx.load(result.path).opset_import] == [opset]
    assert all(item.agreement >= 0.9999 and item.classes >= 3 for item in result.comparisons)
    assert [item.batch for item in result.comparisons] == [1, 2]


def test_model_passed_in_is_not_changed(weights: Path, tmp_path: Path) -> None:
    model = load_model(weights, device="cpu")
    model.segmentor.train()
    before = {name: value.clone() for name, value in model.segmentor.state_dict().items()}
    content = weights.read_bytes()
    export_onnx(tmp_path / "m.onnx", checkpoint=model, precision="fp16", dynamic="")
    after = model.segmentor.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(value.dtype == before[name].dtype for name, value in after.items())
    assert model.segmentor.training
    assert all(parameter.requires_grad for parameter in model.segmentor.parameters())
    assert weights.read_bytes() == content


def test_weights_too_large_for_one_file_lie_beside_it(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: Path
) -> None:
    monkeypatch.setattr(mmseg_eomt.deploy.onnx_file, "LARGEST_FILE", 1000)
    arguments: dict[str, Any] = {
        "checkpoint": weights, "include_preprocessing": True, "dynamic": "",
    }  # fmt: skip
    out = export_onnx(tmp_path / "m.onnx", **arguments).path
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert out.stat().st_size < exported.stat().st_size / 2
    images = graph_input(made_pictures(1, (40, 40), channels=3), metadata_of(exported))
    found, expected = run_file(out, images), run_file(exported, images)
    np.testing.assert_array_equal(found["scores"], expected["scores"])
    # A smaller model in its place leaves no weights of the old one behind.
    monkeypatch.undo()
    export_onnx(out, **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_model_that_differs_is_not_written(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.onnx"
    out.write_bytes(b"the model of yesterday")
    strict = {**LIMITS, "fp32": Limits(1.0, 0.0, 0.0)}
    monkeypatch.setattr("mmseg_eomt.deploy.verify.LIMITS", strict)
    with pytest.raises(ValueError, match=r"differs from PyTorch: at batch 1, 40 x 40 pixels"):
        export_onnx(out, checkpoint=weights)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    assert out.read_bytes() == b"the model of yesterday"


def test_bfloat16_is_compared_by_emulation_and_the_note_says_so(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = export_onnx(tmp_path / "m.onnx", checkpoint=weights, precision="bf16", dynamic="")
    assert "rounded to it instead" in " ".join(capsys.readouterr().out.split())
    (comparison,) = result.comparisons
    assert comparison.agreement >= 0.98
    assert comparison.largest is not None and comparison.largest > 1e-4  # it was rounded
    assert any(
        array_of(tensor).dtype.name == "bfloat16"
        for tensor in onnx.load(result.path).graph.initializer
    )


def test_int8_rounds_linear_layers_and_says_what_it_measured_on(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = [picture((50, 70), seed=seed) for seed in range(6)]
    result = export_onnx(
        tmp_path / "m.onnx", checkpoint=weights, precision="int8", images=pictures, dynamic=""
    )
    text = " ".join(capsys.readouterr().out.split())
    assert "Ranges were measured on 6 pictures of the images given." in text
    model = onnx.load(result.path)
    rounded = [node.op_type for node in model.graph.node].count("QuantizeLinear")
    assert rounded >= 8  # inputs of qkv, proj, fc1 and fc2 of two blocks
    stored = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 2}
    assert onnx.TensorProto.INT8 in stored
    (comparison,) = result.comparisons
    assert comparison.largest is not None and comparison.largest > 1e-4  # it was rounded


def test_int8_needs_pictures(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"precision is 'int8', whose ranges are measured on"):
        export_onnx(tmp_path / "m.onnx", checkpoint=weights, precision="int8")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 7}, r"height is 7; allowed: an integer from 8, the side of a patch"),
        ({"width": 40.0}, r"width is 40.0; allowed"),
        ({"batch_size": 0}, r"batch_size is 0; allowed: a positive integer"),
        ({"dynamic": "batch,depth"}, r"dynamic is 'batch,depth'; allowed: some of batch, height"),
        ({"precision": "int4"}, r"precision is 'int4'; allowed: fp32, fp16"),
        ({"outputs": "masks"}, r"outputs is 'masks'; allowed: labels, scores, both"),
        ({"opset_version": 17}, r"opset_version is 17; allowed: 18 to 23"),
        ({"opset_version": 24}, r"opset_version is 24; allowed: 18 to 23"),
        ({"channel_order": "bgr"}, r"channel_order is 'bgr': without include_preprocessing"),
        ({"include_preprocessing": True, "channel_order": "hsv"}, r"channel_order is 'hsv'"),
        ({"images": []}, r"images is an empty list"),
        ({"out": "model.pt"}, r"out is 'model.pt': the name of the file must end in .onnx"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_exported(
    weights: Path, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        export_onnx(**{"out": tmp_path / "m.onnx", "checkpoint": weights, **arguments})
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written_to_is_found_out_first(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match=r"file/m.onnx: its folder cannot be written to"):
        export_onnx(tmp_path / "file" / "m.onnx", checkpoint=tmp_path / "is-not-read")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder.onnx: is a folder"):
        export_onnx(tmp_path / "folder.onnx", checkpoint=tmp_path / "is-not-read")


def test_full_disk_is_named_and_leaves_what_was_there(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.onnx"
    out.write_bytes(b"the model of yesterday")

    def full(path: Path, content: bytes) -> int:
        with open(path, "wb") as file:
            file.write(content[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"m.onnx: could not be written \(No space left on device\)"):
        export_onnx(out, checkpoint=weights)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    assert out.read_bytes() == b"the model of yesterday"


def test_missing_packages_are_named_with_the_command(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if "onnxslim" in name else object()
    )
    with pytest.raises(ImportError, match=r"pip install onnxslim \(or export with simplify=False"):
        export_onnx(tmp_path / "m.onnx", checkpoint=weights)


def test_checkpoint_without_classes_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "bare.pth")
    with pytest.raises(ValueError, match=r"bare.pth"):
        export_onnx(tmp_path / "m.onnx", checkpoint=tmp_path / "bare.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["bare.pth"]


def test_model_made_ready_for_inference_is_refused(weights: Path, tmp_path: Path) -> None:
    model = load_model(weights, device="cpu")
    half = SegmentationModel(model.segmentor.bfloat16(), model.header)
    with pytest.raises(ValueError, match=r"not as its file has it \(torch.bfloat16\)"):
        export_onnx(tmp_path / "m.onnx", checkpoint=half)


@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
@pytest.mark.parametrize("dynamic", ["", "batch,height,width"])
def test_graph_gives_what_the_segmentor_gives_and_leaves_it_as_it_is(
    family: str, dynamic: str
) -> None:
    header = lively_header(family)
    segmentor = lively_segmentor(header)
    before = {name: value.clone() for name, value in segmentor.state_dict().items()}
    metadata = deploy_metadata(
        header, height=45, width=30, batch_size=2, dynamic=dynamic, precision="fp32",
        outputs="both", include_preprocessing=True, channel_order="bgr", versions={},
    )  # fmt: skip
    pictures = made_pictures(2, (45, 30), channels=3)
    with torch.inference_mode():
        labels, scores = DeployGraph(segmentor, metadata)(
            torch.from_numpy(graph_input(pictures, metadata))
        )
        images = torch.from_numpy(network_input(np.stack(pictures), header))
        expected = segmentor.encode_decode(images, [{}, {}])
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=2e-5)
    assert labels.dtype == torch.int32
    assert set(np.unique(labels)) <= set(header.class_ids)
    assert len(np.unique(labels)) >= 3
    ids = torch.tensor(header.class_ids, dtype=torch.int32)
    assert (labels == ids[expected.argmax(1)]).float().mean() >= 0.9999
    after = segmentor.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
