"""Changes of colour are those of torchvision."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as F

from dinov2_pretraining.data.views.view_colors import ColorRecipe, blur, grey, shift_hue, solarise

RNG = np.random.default_rng(0)
# Blotches of strong colours with smooth transitions.
PICTURE = cv2.resize(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8), (56, 42))
NOTHING = {
    "jitter_prob": 0.0,
    "grey_prob": 0.0,
    "blur_prob": 0.0,
    "solarise_prob": 0.0,
}


def as_torch(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1)))


def difference(image: np.ndarray, expected: torch.Tensor) -> np.ndarray:
    return np.abs(as_torch(image).numpy().astype(int) - expected.numpy().astype(int))


@pytest.mark.parametrize("shift", [-0.1, -0.03, 0.0, 0.04, 0.1])
def test_hue_turns_as_in_torchvision_on_pillow(shift: float) -> None:
    expected = F.adjust_hue(Image.fromarray(PICTURE[..., ::-1].copy()), shift)
    found = difference(shift_hue(PICTURE, shift), F.pil_to_tensor(expected))
    # Where a colour is pure, a step of its hue is 6 levels of a channel.
    assert found.mean() < 1.0 and found.max() <= 12


def test_grey_is_torchvisions() -> None:
    assert difference(grey(PICTURE), F.rgb_to_grayscale(as_torch(PICTURE), 3)).max() <= 1


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_torchvisions(sigma: float) -> None:
    expected = F.gaussian_blur(as_torch(PICTURE), [9, 9], [sigma, sigma])
    assert difference(blur(PICTURE, sigma), expected).max() <= 1


def test_solarisation_is_torchvisions() -> None:
    assert difference(solarise(PICTURE), F.solarize(as_torch(PICTURE), 128)).max() == 0


@pytest.mark.parametrize("name, change", [("brightness", 0), ("contrast", 1), ("saturation", 2)])
def test_factors_are_uniform_and_applied_as_in_torchvision(name: str, change: int) -> None:
    strengths = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, name: 0.4}
    recipe = ColorRecipe(**{**NOTHING, "jitter_prob": 1.0, **strengths})
    adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)[change]
    factors = np.linspace(0.6, 1.4, 81)
    expected = [adjust(as_torch(PICTURE), factor).numpy().astype(float) for factor in factors]
    np.random.seed(0)
    found = []
    for _ in range(60):
        values = as_torch(recipe.apply(PICTURE)).numpy()
        distances = [np.abs(values - other).mean() for other in expected]
        # A hue of nothing still passes through bytes of hue, saturation and value.
        assert min(distances) < 1.5
        found.append(factors[int(np.argmin(distances))])
    assert min(found) < 0.68 and max(found) > 1.32 and abs(np.mean(found) - 1) < 0.08


@pytest.mark.parametrize("name", ["jitter", "grey", "blur", "solarise"])
def test_each_change_comes_as_often_as_it_says(name: str) -> None:
    recipe = ColorRecipe(**{**NOTHING, f"{name}_prob": 0.3, "blur_sigma": (1.0, 1.0)})
    np.random.seed(0)
    changed = np.mean([not np.array_equal(recipe.apply(PICTURE), PICTURE) for _ in range(400)])
    assert abs(changed - 0.3) < 0.07


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"grey_prob": 1.1}, "grey_prob is 1.1"),
        ({"hue": 0.6}, "hue is 0.6; allowed are 0 to 0.5"),
        ({"contrast": -1}, "contrast is -1"),
        ({"blur_sigma": (0.0, 1.0)}, "blur_sigma"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ColorRecipe(**wrong)
