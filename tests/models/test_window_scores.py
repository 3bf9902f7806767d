"""Scores in row strips against the plain computation at full size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mmseg_eomt.images.windows import cover
from mmseg_eomt.models.window_scores import View, label_map, score_map

Q, K = 6, 5


def _view(size: tuple[int, int], window: int, patch: int = 16, flip: str | None = None) -> View:
    shape, starts = cover(size, (window, window))
    padded = tuple(-(-side // patch) * patch for side in shape)
    masks = 4 * torch.randn(len(starts), Q, padded[0] // 4, padded[1] // 4)
    classes = torch.randn(len(starts), K, Q).softmax(1)
    return View(masks, classes, tuple(starts), shape, padded, size, flip)


def _plain(view: View, size: tuple[int, int]) -> torch.Tensor:
    """The published order, without strips: upsample, sigmoid, sum, average, resize."""
    total, count = torch.zeros(K, *view.size), torch.zeros(view.size)
    height, width = view.window
    for masks, classes, (top, left) in zip(view.masks, view.classes, view.starts, strict=True):
        full = F.interpolate(masks[None], view.padded, mode="bilinear")[0, :, :height, :width]
        part = torch.einsum("kq,qhw->khw", classes, full.sigmoid())
        total[:, top : top + height, left : left + width] += part
        count[top : top + height, left : left + width] += 1
    canvas = total / count
    if view.flip:
        canvas = canvas.flip(2 if view.flip == "horizontal" else 1)
    return F.interpolate(canvas[None], size, mode="bilinear")[0]


CASES = [
    ((64, 150), 64, (64, 150)),
    ((64, 150), 64, (201, 470)),
    ((150, 64), 64, (97, 41)),
    ((70, 50), 70, (140, 100)),
    ((61, 61), 64, (61, 61)),
]


@pytest.mark.parametrize("flip", [None, "horizontal", "vertical"])
@pytest.mark.parametrize(("canvas", "window", "size"), CASES)
def test_scores_equal_the_plain_computation(
    canvas: tuple[int, int], window: int, size: tuple[int, int], flip: str | None
) -> None:
    torch.manual_seed(0)
    view = _view(canvas, window, flip=flip)
    expected = _plain(view, size)
    torch.testing.assert_close(score_map([view], size), expected, rtol=1e-4, atol=1e-5)
    labels = label_map([view], size, memory=2**30)
    assert labels.shape == size and labels.dtype == torch.int32
    top = expected.topk(2, 0).values
    clear = top[0] - top[1] > 1e-4
    assert clear.float().mean() > 0.99
    assert torch.equal(labels[clear], expected.argmax(0).int()[clear])


@pytest.mark.parametrize(("canvas", "window", "size"), CASES)
def test_bounded_memory_gives_the_same_labels(
    canvas: tuple[int, int], window: int, size: tuple[int, int]
) -> None:
    torch.manual_seed(1)
    views = [_view(canvas, window), _view(canvas, window, flip="horizontal")]
    whole = label_map(views, size, memory=2**40)
    for memory in (1, 400_000, 1_500_000):
        assert torch.equal(label_map(views, size, memory=memory), whole), memory


def test_views_of_different_sizes_are_averaged() -> None:
    torch.manual_seed(2)
    views = [_view((64, 100), 64), _view((96, 150), 96, flip="horizontal")]
    expected = (_plain(views[0], (50, 80)) + _plain(views[1], (50, 80))) / 2
    torch.testing.assert_close(score_map(views, (50, 80)), expected, rtol=1e-4, atol=1e-5)


LIMIT = 1024  # MiB beyond the model and the input

CHILD = """
import sys
import torch
import mmseg_eomt
from mmseg.structures import SegDataSample
from mmseg_eomt.models.eomt_segmentor import EoMTSegmentor
from mmseg_eomt.models.window_scores import label_map

def status(name):
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith(name)).split()[1]) / 1024

torch.set_num_threads(1)
torch.manual_seed(0)
height, width = map(int, sys.argv[1:3])
model = EoMTSegmentor(
    backbone={
        "type": "DINOv3",
        "arch": {"embed_dims": 32, "depth": 2, "num_heads": 2, "patch_size": 16},
        "num_joint_blocks": 1,
    },
    decode_head={"type": "EoMTHead", "num_classes": 150, "num_queries": 100},
    data_preprocessor={"mean": [120.0] * 3, "std": [60.0] * 3, "bgr_to_rgb": True},
).eval()
with torch.no_grad():
    model.decode_head.class_head.weight.normal_(std=2.0)
    model.decode_head.mask_head[-1].weight.mul_(20.0)
image = torch.randint(0, 256, (3, height * 512 // min(height, width), width * 512 //
    min(height, width)), dtype=torch.uint8)
sample = SegDataSample(metainfo={"ori_shape": (height, width)})
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = status("VmRSS")
with torch.inference_mode():
    labels = model.test_step({"inputs": [image], "data_samples": [sample]})[0].pred_sem_seg.data
peak = status("VmHWM") - before
if sys.argv[3] == "compare":
    # The plain computation, whole: scores of all classes at the original size.
    from mmseg_eomt.models.window_scores import score_map
    with torch.inference_mode():
        data = model.data_preprocessor({"inputs": [image], "data_samples": [sample]}, False)
        views = model.views(data["inputs"], [sample.metainfo])
        scores = score_map(views, (height, width))
        top = scores.topk(2, 0)
    clear = top.values[0] - top.values[1] > 1e-5
    equal = bool((top.indices[0] == labels[0])[clear].all())
    print("clear", clear.float().mean().item(), "classes", len(labels.unique()), "equal", equal)
print(peak)
"""


def _run(height: int, width: int, *, compare: bool) -> list[str]:
    command = [sys.executable, "-c", CHILD, str(height), str(width), "compare" if compare else ""]
    root = Path(__file__).parents[2]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout
    return output.splitlines()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_a_large_image_takes_less_than_a_gibibyte() -> None:
    # All 150 scores of its 24 million pixels would be 13.4 GiB.
    peak = float(_run(4000, 6000, compare=False)[-1])
    assert 96 < peak < LIMIT, "the label map alone is 92 MiB"


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.slow
def test_its_labels_are_those_of_all_scores_at_once() -> None:
    line = _run(800, 1200, compare=True)[-2].split()
    assert float(line[1]) > 0.9 and int(line[3]) > 3 and line[5] == "True", line
