"""Samplers that show rare classes more often, exact in resumed and distributed runs."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import numpy as np
from mmseg.registry import DATA_SAMPLERS
from numpy.typing import NDArray

from mmseg_eomt.datasets.class_presence import Presence, class_presence
from mmseg_eomt.datasets.step_sampler import SampleIndex, StepSampler

Weights = NDArray[np.float64]


@DATA_SAMPLERS.register_module()
class BalancedStepSampler(StepSampler):
    """`StepSampler` with samples drawn as often as their classes are rare.

    An epoch shows each sample as often as ``rule`` wishes: a wish of 2.3 is met by 2 or 3 draws,
    chosen anew in each epoch, 2.3 on average. Which ones depends on the seed and the epoch alone,
    so `StepSampler`'s promises hold: a global batch holds the same samples on any number of
    processes, and a resumed run goes on exactly.

    Rules:

    * ``'repeat_factor'``: a class that a share f of the images shows gets the factor
      ``max(1, sqrt(threshold / f))``, an image the largest factor of its classes. An epoch is as
      long as all factors together. Source: LVIS (Gupta et al., 2019), appendix B.2.
    * ``'class_balanced'``: a class is drawn evenly, then an image that shows it. An epoch is as
      long as the dataset. Images without a labelled pixel are not drawn.

    All masks are read once before training, each process its share.

    Args:
        dataset (Sized): See `class_presence`.
        rule (str): ``'repeat_factor'`` or ``'class_balanced'``. Defaults to
            ``'repeat_factor'``.
        threshold (float): Of ``'repeat_factor'``: the share of images below which a class is
            rare. Defaults to 0.05.
        seed (int, optional): See `StepSampler`. Defaults to None.
    """

    def __init__(
        self,
        dataset: Sized,
        *,
        rule: str = "repeat_factor",
        threshold: float = 0.05,
        seed: int | None = None,
    ) -> None:
        super().__init__(dataset, seed=seed)
        if rule == "repeat_factor":
            if not 0 < threshold <= 1:
                raise ValueError(
                    f"BalancedStepSampler: threshold is {threshold}; allowed are shares of the "
                    "images above 0 and up to 1."
                )
            wishes = repeat_factors(class_presence(dataset), threshold)
        elif rule == "class_balanced":
            wishes = class_balanced_draws(class_presence(dataset))
        else:
            raise ValueError(
                f"BalancedStepSampler: rule is {rule!r}; allowed are 'repeat_factor' and "
                "'class_balanced'."
            )
        self.epoch_size = max(1, round(float(wishes.sum())))
        # Rounding the length of an epoch changes all wishes by the same tiny share.
        self.draws: Weights = wishes * (self.epoch_size / wishes.sum())
        # In whole steps of 2**-32, so that sums are exact in any order of the samples.
        self._ends = np.rint(np.cumsum(self.draws) * 2.0**32).astype(np.int64)
        self._ends[-1] = self.epoch_size << 32

    def __iter__(self) -> Iterator[SampleIndex]:
        position = self.start + self.rank
        epoch, order = -1, np.zeros(0, np.int64)
        while True:
            if position // self.epoch_size != epoch:
                epoch = position // self.epoch_size
                order = self._permutation(epoch)
            yield SampleIndex(int(order[position % self.epoch_size]), position, self.seed)
            position += self.world_size

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        """The samples of an epoch: each wish rounded down or up, together ``epoch_size``."""
        bits = np.random.MT19937(np.random.SeedSequence((self.seed, epoch)))
        random = np.random.RandomState(bits)
        # Sample i is drawn once for each whole number between the sums of the wishes before and
        # up to it, shifted by one random number (systematic sampling). The samples are shuffled
        # first, since neighbours' roundings depend on each other.
        order = random.permutation(self.size)
        widths = np.diff(self._ends, prepend=0)[order]
        shift = int(random.randint(0, 1 << 32, dtype=np.int64))
        marks = (np.cumsum(widths) + shift) >> 32
        counts = np.diff(marks, prepend=0)
        drawn: NDArray[np.int64] = np.repeat(order, counts)
        return random.permutation(drawn)


def repeat_factors(presence: Presence, threshold: float) -> Weights:
    """How often an epoch wishes to show each sample: ``[samples]``, 1 and more.

    Args:
        presence (ndarray): ``bool [samples, classes]``.
        threshold (float): Share of the images below which a class is rare.
    """
    share = presence.mean(axis=0)
    # A class that no image shows has no factor to give.
    factor = np.sqrt(threshold / np.where(share > 0, share, 1.0))
    factors: Weights = np.where(presence, factor, 1.0).max(axis=1, initial=1.0)
    return factors


def class_balanced_draws(presence: Presence) -> Weights:
    """How often an epoch as long as the dataset wishes to show each sample: ``[samples]``.

    Args:
        presence (ndarray): ``bool [samples, classes]``.

    Raises:
        ValueError: If no sample shows any class.
    """
    images = presence.sum(axis=0)
    shown = images > 0
    if not shown.any():
        raise ValueError(
            "BalancedStepSampler: no mask has a labelled pixel, so there is nothing to balance. "
            "Check the masks and the classes."
        )
    draws: Weights = (presence[:, shown] / images[shown]).sum(axis=1)
    draws *= len(presence) / shown.sum()
    return draws
