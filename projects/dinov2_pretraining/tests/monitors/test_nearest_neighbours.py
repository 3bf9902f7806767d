"""k-NN is scikit-learn's with the stated weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from dinov2_pretraining.monitors.nearest_neighbours import neighbours_vote


@pytest.mark.parametrize("neighbours", [1, 5, 20])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_votes_are_those_of_scikit_learn(neighbours: int, temperature: float) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 120)
    train = rng.normal(size=(120, 8)) + 0.7 * np.eye(8)[labels]
    test = rng.normal(size=(1500, 8))  # more than one chunk

    def normalised(rows: np.ndarray) -> np.ndarray:
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    # Of unit vectors the squared distance is 2 - 2 * cosine.
    reference = KNeighborsClassifier(
        neighbours,
        algorithm="brute",
        weights=lambda distance: np.exp((1 - distance**2 / 2) / temperature),
    ).fit(normalised(train), labels)
    found = neighbours_vote(
        torch.from_numpy(train),
        torch.from_numpy(labels),
        torch.from_numpy(test),
        num_classes=4,
        neighbours=neighbours,
        temperature=temperature,
    )
    assert np.array_equal(found.numpy(), reference.predict(normalised(test)))


def test_fewer_rows_than_neighbours_all_vote() -> None:
    train = torch.eye(3)
    found = neighbours_vote(train, torch.tensor([2, 0, 1]), train, num_classes=3, neighbours=20)
    assert found.tolist() == [2, 0, 1]
