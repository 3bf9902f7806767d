"""The loss against transformers' criterion, plain formulas, and itself on more processes."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmseg.registry import MODELS
from torch import Tensor
from torch.multiprocessing.spawn import start_processes
from torch.utils._python_dispatch import TorchDispatchMode

from mmseg_eomt.models.mask_loss import MaskClassificationLoss
from mmseg_eomt.models.step import StepRandom
from mmseg_eomt.models.targets import LabelTargets
from tests.models.hf_oracle import hf_losses
from tests.models.rank_process import RANDOM, save_losses_of_rank
from tests.models.scenes import make_labels, make_predictions


def leaves(predictions: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [logits for prediction in predictions for logits in prediction]


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def assert_equals_oracle(
    monkeypatch: pytest.MonkeyPatch,
    loss: MaskClassificationLoss,
    predictions: list[tuple[Tensor, Tensor]],
    labels: Tensor,
) -> None:
    ours = loss(predictions, labels, random=RANDOM)
    expected, _ = hf_losses(monkeypatch, loss, predictions, labels, RANDOM)
    assert set(ours) == set(expected)
    for name, value in ours.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    found = torch.autograd.grad(total(ours), leaves(predictions))
    wanted = torch.autograd.grad(total(expected), leaves(predictions))
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("queries", [12, 3], ids=["queries to spare", "more classes than queries"])
@pytest.mark.parametrize("seed", range(4))
def test_losses_and_gradients_equal_transformers(
    monkeypatch: pytest.MonkeyPatch, seed: int, queries: int
) -> None:
    torch.manual_seed(seed)
    predictions = make_predictions(7, queries=queries)
    loss = MODELS.build({"type": "MaskClassificationLoss", "num_classes": 7, "num_points": 300})
    assert_equals_oracle(monkeypatch, loss, predictions, make_labels(7))


def test_one_class_and_class_weights_equal_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    one = MaskClassificationLoss(1, num_points=100)
    labels = torch.zeros(2, 20, 20, dtype=torch.uint8)
    assert_equals_oracle(monkeypatch, one, make_predictions(1, images=2), labels)
    weighted = MaskClassificationLoss(4, num_points=100, class_weights=[0.5, 2.0, 1.0, 3.0, 0.2])
    assert_equals_oracle(monkeypatch, weighted, make_predictions(4), make_labels(4))


def test_class_weights_of_another_length_are_refused() -> None:
    appended = MaskClassificationLoss(3, class_weights=[1, 2, 3], no_object_weight=0.3)
    assert appended.class_weights.tolist() == pytest.approx([1, 2, 3, 0.3])
    with pytest.raises(ValueError, match=r"2 values; give 3 \(one a class\) or 4"):
        MaskClassificationLoss(3, class_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="must not be negative, found -1"):
        MaskClassificationLoss(3, class_weights=[1.0, 2.0, -1.0])


@pytest.mark.parametrize("rule", ["negative", "skip"])
def test_image_without_labels_teaches_only_no_object(rule: str) -> None:
    predictions = make_predictions(7, images=2)
    labels = torch.full((2, 24, 24), 255)
    losses = MaskClassificationLoss(7, num_points=50, ignore_rule=rule)(
        predictions, labels, random=RANDOM
    )
    assert losses["loss_mask"].item() == 0
    assert losses["loss_dice_block1"].item() == 0
    logits = predictions[2][1].detach().flatten(0, 1)
    expected = 2 * F.cross_entropy(logits, torch.full((len(logits),), 7))
    torch.testing.assert_close(losses["loss_class"].detach(), expected)
    gradients = torch.autograd.grad(total(losses), leaves(predictions))
    assert all(bool((g == 0).all()) for g in gradients[::2])
    assert all(bool((g != 0).any()) for g in gradients[1::2])


def test_skip_equals_the_formula_written_out() -> None:
    labels, predictions = make_labels(4), make_predictions(4, predictions=1)
    loss = MaskClassificationLoss(4, num_points=60, ignore_rule="skip")
    ours = loss(predictions, labels, random=RANDOM)
    targets = LabelTargets.from_labels(labels, num_classes=4, ignore_index=255)
    matches = loss.matcher(predictions, targets, random=RANDOM)
    pool, candidates = loss.pool_points(RANDOM, 0, "cpu")
    cross_entropy, dice = 0.0, 0.0
    pairs = list(zip(matches.queries[0].tolist(), matches.classes[0].tolist(), strict=True))
    for query, wanted in pairs:
        image = query // 12
        logits = predictions[0][0][image, query % 12]

        def at(grid: Tensor, points: Tensor, outside: str = "zeros") -> Tensor:
            where, grid = 2 * points[None, :, None] - 1, grid[None, None].float()
            return F.grid_sample(grid, where, padding_mode=outside, align_corners=False).flatten()

        ignored = labels[image] == 255
        doubt = at(logits, pool[:candidates]).abs()
        doubt[at(ignored, pool[:candidates], "border") > 1 - 1e-5] = torch.inf
        nearest = doubt.argsort()[: int(0.75 * 60)]
        points = torch.cat([pool[:candidates][nearest], pool[candidates:]])
        x, t = at(logits, points), at(labels[image] == wanted, points)
        v = 1 - at(ignored, points, "border")
        # A labelled neighbour of another class, and what lies outside, are background.
        errors = t * F.softplus(-x) + (v - t) * F.softplus(x)
        cross_entropy += errors.sum() / v.sum().clamp(min=1)
        s = x.sigmoid()
        dice += 1 - (2 * (s * t).sum() + 1) / ((v * s).sum() + t.sum() + 1)
    torch.testing.assert_close(ours["loss_mask"], 5 * cross_entropy / len(pairs))
    torch.testing.assert_close(ours["loss_dice"], 5 * dice / len(pairs))


def test_skip_ignores_what_is_predicted_at_ignored_pixels() -> None:
    labels = make_labels(4)
    labels[:, :, 32:] = 255
    predictions = make_predictions(4)
    loss = MaskClassificationLoss(4, num_points=200, ignore_rule="skip")
    gradients = torch.autograd.grad(
        total(loss(predictions, labels, random=RANDOM)), leaves(predictions)
    )
    # A logit reaches one cell (4 px) over the border by bilinear sampling, no further.
    assert all(bool((g[..., 9:] == 0).all()) for g in gradients[::2])
    assert all(bool((g[..., :8] != 0).any()) for g in gradients[::2])


def test_both_ignore_rules_agree_without_ignored_pixels() -> None:
    labels, predictions = make_labels(4) % 4, make_predictions(4)
    assert labels.max() < 4
    negative = MaskClassificationLoss(4, num_points=100)
    skip = MaskClassificationLoss(4, num_points=100, ignore_rule="skip")
    expected = negative(predictions, labels, random=RANDOM)
    for name, value in skip(predictions, labels, random=RANDOM).items():
        torch.testing.assert_close(value, expected[name], msg=name)


@pytest.mark.parametrize("queries", [12, 3], ids=["queries to spare", "more classes than queries"])
def test_totals_make_micro_batches_add_up_to_the_whole_batch(queries: int) -> None:
    labels, predictions = make_labels(7, images=4), make_predictions(7, images=4, queries=queries)
    labels[3, :] = 255
    labels[2, 8:] = labels[2, 0, 0]
    weights = [1.0] * 7 if queries == 3 else [0.5, 1.0, 2.0, 3.0, 0.1, 1.0, 1.0]
    loss = MaskClassificationLoss(7, num_points=100, class_weights=weights)
    whole = loss(predictions, labels, random=RANDOM)
    counts = [loss.count_targets(part, num_queries=queries) for part in labels.split(2)]
    for name, value in whole.items():
        parts = [
            loss(
                [(m[part], c[part]) for m, c in predictions],
                labels[part],
                random=RANDOM,
                totals=torch.stack(counts).mean(0),
            )[name]
            for part in (slice(0, 2), slice(2, 4))
        ]
        torch.testing.assert_close(torch.stack(parts).mean(0), value, msg=name)


def test_two_processes_give_the_losses_of_one(tmp_path: Path) -> None:
    labels, predictions = make_labels(7, images=4), make_predictions(7, images=4)
    labels[3, 8:] = 255  # unequal numbers of masks
    detached = [(m.detach(), c.detach()) for m, c in predictions]
    torch.save({"labels": labels, "predictions": detached}, tmp_path / "data.pt")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    # Forked, because importing the mm packages anew in each process takes many seconds.
    start_processes(save_losses_of_rank, args=(port, str(tmp_path)), nprocs=2, start_method="fork")
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    alone = MaskClassificationLoss(7, num_points=100)(detached, labels, random=RANDOM)
    for name, value in alone.items():
        torch.testing.assert_close((ranks[0][name] + ranks[1][name]) / 2, value, msg=name)
        assert ranks[0][name] != ranks[1][name]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_under_autocast_give_float32_losses(dtype: torch.dtype) -> None:
    labels, predictions = make_labels(7), make_predictions(7)
    half = [(m.detach().to(dtype), c.detach().to(dtype)) for m, c in predictions]
    loss = MaskClassificationLoss(7, num_points=100)
    for prediction in half:
        for logits in prediction:
            logits.requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        losses = loss(half, labels, random=RANDOM)
    expected = loss([(m.float(), c.float()) for m, c in half], labels, random=RANDOM)
    for name, value in losses.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, expected[name]), name
    assert all(g.dtype == dtype for g in torch.autograd.grad(total(losses), leaves(half)))


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that an operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // 4)
        return result


def test_nothing_of_the_size_of_one_hot_masks_is_allocated() -> None:
    labels = torch.randint(0, 40, (2, 256, 256))
    predictions = make_predictions(40, images=2, queries=50, predictions=2)
    with LargestTensor() as largest:
        total(
            MaskClassificationLoss(40, num_points=64)(predictions, labels, random=RANDOM)
        ).backward()
    # Largest is what works on the label map as int64: 2 elements of 4 bytes a pixel.
    assert largest.elements <= 2 * labels.numel() < 2 * 40 * 256 * 256 / 10


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(3, 1, 8, 8, dtype=torch.long), r"must be an integer tensor \[B, H, W\]"),
        (torch.zeros(3, 8, 8), "found torch.float32"),
        (torch.zeros(2, 8, 8, dtype=torch.long), "do not fit 2 label maps of 7 classes"),
    ],
    ids=["channel dimension", "float labels", "another number of images"],
)
def test_labels_of_a_wrong_form_are_refused(labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskClassificationLoss(7)(make_predictions(7), labels, random=RANDOM)


def test_points_are_the_same_for_a_step_and_differ_between_steps() -> None:
    labels, predictions = make_labels(7), make_predictions(7)
    loss = MaskClassificationLoss(7, num_points=100)
    first = total(loss(predictions, labels, random=StepRandom(seed=1, step=1)))
    assert torch.equal(first, total(loss(predictions, labels, random=StepRandom(seed=1, step=1))))
    assert first != total(loss(predictions, labels, random=StepRandom(seed=1, step=2)))
