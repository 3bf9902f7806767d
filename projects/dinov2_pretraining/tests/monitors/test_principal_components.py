"""Components are scikit-learn's, and colours show what they tell apart."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.decomposition import PCA

from dinov2_pretraining.monitors.principal_components import (
    component_colors,
    foreground,
    patch_colors,
    principal_axes,
)


def test_axes_are_those_of_scikit_learn_with_a_fixed_sign() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 7)) @ rng.normal(size=(7, 7)) + 3
    axes = principal_axes(torch.from_numpy(rows)).numpy()
    reference = PCA(3, svd_solver="full").fit(rows).components_
    signs = np.sign(np.take_along_axis(reference, np.abs(reference).argmax(1)[:, None], 1))
    assert np.abs(axes - reference * signs).max() < 1e-9


def test_colors_rise_with_the_components_and_fill_the_range() -> None:
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.normal(size=(500, 6)) * [5, 3, 2, 0.1, 0.1, 0.1])
    colors = component_colors(rows)
    projected = PCA(3, svd_solver="full").fit_transform(rows.numpy())
    for channel in range(3):
        correlation = np.corrcoef(projected[:, channel], colors[:, channel])[0, 1]
        assert abs(correlation) > 0.98
        # The outermost hundredths have the strongest colour.
        assert 4 <= (colors[:, channel] == 0).sum() <= 6
        assert 4 <= (colors[:, channel] == 1).sum() <= 6


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """Two 6 x 6 grids with an object of two halves in the middle, and where it is."""
    inside = torch.zeros(6, 6, dtype=torch.bool)
    inside[2:4, 1:5] = True
    generator = torch.Generator().manual_seed(0)
    patches = 0.05 * torch.randn(2, 36, 8, generator=generator)
    patches[:, inside.flatten(), 0] += 4.0
    patches[:, ~inside.flatten(), 0] -= 4.0
    left = torch.zeros(6, 6, dtype=torch.bool)
    left[2:4, 1:3] = True
    patches[:, left.flatten(), 1] += 1.0
    return patches, inside


def test_the_foreground_is_what_does_not_touch_the_border() -> None:
    patches, inside = scene()
    for sign in (1.0, -1.0):
        found = foreground(sign * patches, (6, 6))
        assert torch.equal(found, inside.flatten().expand(2, -1))


def test_parts_of_the_foreground_get_colors_of_their_own() -> None:
    patches, inside = scene()
    whole, front = patch_colors(patches, (6, 6))
    assert whole.shape == front.shape == (2, 6, 6, 3)
    assert (front[:, ~inside] == 0).all()
    # Over all patches the halves are nearly alike, among themselves they are opposite.
    difference = [(c[0, 2, 1] - c[0, 2, 4]).abs()[0] for c in (whole, front)]
    assert difference[0] < 0.1 and difference[1] > 0.8


def test_collapsed_features_give_a_flat_picture_and_no_error() -> None:
    whole, front = patch_colors(torch.ones(2, 36, 8), (6, 6))
    assert torch.isfinite(whole).all() and torch.isfinite(front).all()
    assert (whole == whole[0, 0, 0]).all() and (front == 0).all()
