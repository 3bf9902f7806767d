"""The colour operations against torchvision's, and how often each is drawn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from mmseg_eomt.datasets.transforms import ChannelDrop, color
from mmseg_eomt.datasets.transforms.color import EoMTColorJitter

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
@pytest.mark.parametrize("amount", [-1.0, -0.3, 0.0, 0.6, 1.0])
def test_operations_equal_torchvision_to_rounding(name: str, amount: float) -> None:
    strength = {"brightness": 32 / 255, "contrast": 0.5, "saturation": 0.5, "hue": 18 / 360}[name]
    value = amount * strength + (name != "hue")
    ours: Callable[..., np.ndarray] = getattr(color, f"adjust_{name}")
    theirs = getattr(reference, f"adjust_{name}")
    # In float, since torchvision cuts bytes off instead of rounding them.
    rgb = torch.from_numpy(IMAGE[..., ::-1].transpose(2, 0, 1).astype(np.float32) / 255)
    expected = theirs(rgb, value).numpy().transpose(1, 2, 0)[..., ::-1] * 255
    result = ours(IMAGE, value)
    assert result.dtype == np.uint8
    # Greys are bytes here, with OpenCV's weights, hence up to one level.
    assert np.abs(result - expected).max() <= (1.5 if name != "hue" else 0.51)


def test_each_operation_is_drawn_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    amounts: dict[str, list[float]] = {}
    for name in ("brightness", "contrast", "saturation", "hue"):

        def record(image: np.ndarray, value: float, name: str = name) -> np.ndarray:
            calls.append(name)
            amounts.setdefault(name, []).append(value)
            return image

        monkeypatch.setattr(color, f"adjust_{name}", record)
    np.random.seed(0)
    jitter, orders, rounds = EoMTColorJitter(), [], 4000
    for _ in range(rounds):
        calls.clear()
        jitter({"img": IMAGE})
        orders.append(tuple(calls))
    limits = {
        "brightness": (1, 32 / 255),
        "contrast": (1, 0.5),
        "saturation": (1, 0.5),
        "hue": (0, 0.05),
    }
    for name, (center, strength) in limits.items():
        drawn = np.array(amounts[name])
        assert abs(len(drawn) / rounds - 0.5) < 0.04, name
        assert np.abs(drawn - center).max() <= strength
        assert np.abs(drawn - center).max() > 0.99 * strength  # the whole range is used
    assert len(set(orders)) == 2**4 + 2**2 + 2  # every subset; contrast before or after the others
    both = [order for order in orders if "contrast" in order and "hue" in order]
    first = sum(order.index("contrast") < order.index("hue") for order in both) / len(both)
    assert abs(first - 0.5) < 0.08
    assert all(order[0] == "brightness" for order in orders if "brightness" in order)


def test_input_is_not_changed_in_place() -> None:
    image = IMAGE.copy()
    np.random.seed(0)
    EoMTColorJitter(prob=1.0)({"img": image})
    assert np.array_equal(image, IMAGE)


def test_images_without_three_channels_are_left_alone() -> None:
    image = IMAGE[..., :2]
    assert EoMTColorJitter(prob=1.0)({"img": image})["img"] is image


@pytest.mark.parametrize("option", ["brightness", "contrast", "saturation", "hue", "prob"])
def test_wrong_strength_is_an_error(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} is 1.5; allowed are 0 to"):
        EoMTColorJitter(**{option: 1.5})


def test_some_channels_are_filled_and_the_rest_untouched() -> None:
    np.random.seed(0)
    image = np.random.randint(1, 200, (6, 7, 4)).astype(np.uint8)
    counts = []
    for _ in range(300):
        result = ChannelDrop(max_dropped=9, prob=0.8, fill=255)({"img": image})["img"]
        dropped = [c for c in range(4) if (result[..., c] == 255).all()]
        kept = [c for c in range(4) if c not in dropped]
        assert np.array_equal(result[..., kept], image[..., kept])
        counts.append(len(dropped))
    assert image.max() < 255  # the original is untouched
    shares = np.bincount(counts, minlength=5) / 300
    assert shares[4] == 0
    assert np.abs(shares[:4] - [0.2, 0.8 / 3, 0.8 / 3, 0.8 / 3]).max() < 0.09


def test_a_single_channel_stays() -> None:
    image = np.ones((3, 3, 1), np.uint8)
    assert ChannelDrop(prob=1.0)({"img": image})["img"].all()


def test_wrong_options_are_named() -> None:
    for options, message in (
        ({"max_dropped": 0}, "max_dropped is 0; allowed"),
        ({"prob": 2.0}, "prob is 2.0; allowed"),
        ({"fill": 256}, "fill is 256; allowed"),
    ):
        with pytest.raises(ValueError, match=message):
            ChannelDrop(**options)
