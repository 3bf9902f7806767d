"""The linear probe is scikit-learn's logistic regression."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dinov2_pretraining.monitors.linear_probe import fit_linear, linear_vote


def rows(classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(90) % classes)
    centres = rng.normal(size=(classes, 6)) * [9, 1, 0.1, 1, 1, 1] + 5
    train = centres[labels] + rng.normal(size=(90, 6))
    return train, labels, centres[np.arange(200) % classes] + 1.5 * rng.normal(size=(200, 6))


@pytest.mark.parametrize("strength", [0.05, 1.0, 20.0])
def test_weights_are_those_of_scikit_learn(strength: float) -> None:
    train, labels, _ = rows(4)
    train = StandardScaler().fit_transform(train)
    weights, bias = fit_linear(
        torch.from_numpy(train), torch.from_numpy(labels), num_classes=4, strength=strength
    )
    reference = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(train, labels)
    assert np.abs(weights.numpy() - reference.coef_).max() < 2e-3 * np.abs(reference.coef_).max()
    # A number added to every bias changes nothing.
    own = bias.numpy() - bias.numpy().mean()
    assert np.abs(own - (reference.intercept_ - reference.intercept_.mean())).max() < 2e-3


def test_votes_are_those_of_scikit_learn_on_standardised_rows() -> None:
    train, labels, test = rows(3)
    scaler = StandardScaler().fit(train)
    reference = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(
        scaler.transform(train), labels
    )
    found = linear_vote(
        torch.from_numpy(train), torch.from_numpy(labels), torch.from_numpy(test), num_classes=3
    )
    assert np.array_equal(found.numpy(), reference.predict(scaler.transform(test)))


def test_a_channel_that_never_changes_is_harmless() -> None:
    train, labels, _ = (torch.from_numpy(part) for part in rows(2))
    train[:, 3] = 7.0
    votes = linear_vote(train, labels, train, num_classes=2)
    assert (votes == labels).double().mean() > 0.9
    with torch.no_grad():  # as around a validation
        assert torch.equal(votes, linear_vote(train, labels, train, num_classes=2))
