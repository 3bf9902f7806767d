"""An endless sampler whose order is a function of the seed and the position in the run."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from mmseg.registry import DATA_SAMPLERS
from torch.utils.data import Sampler


class SampleIndex(int):
    """A sample's index that also knows its place in the run.

    ``-`` and ``%`` keep the place, because the dataset wrappers of mmengine (ConcatDataset,
    RepeatDataset) use them to find the index within a part.

    Attributes:
        position (int): How many samples of the run come before it, over all processes.
        seed (int): Seed of the run.
    """

    position: int
    seed: int

    def __new__(cls, index: int, position: int, seed: int) -> SampleIndex:
        self = super().__new__(cls, index)
        self.position = position
        self.seed = seed
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:  # it travels to the loader's workers
        return int(self), self.position, self.seed

    def __sub__(self, other: int) -> SampleIndex:
        return SampleIndex(int(self) - int(other), self.position, self.seed)

    def __mod__(self, other: int) -> SampleIndex:
        return SampleIndex(int(self) % int(other), self.position, self.seed)


@DATA_SAMPLERS.register_module()
class StepSampler(Sampler[SampleIndex]):
    """Endless permutations of the dataset, dealt out to the processes.

    Position p of the run holds entry ``p % n`` of epoch ``p // n``'s permutation, which depends
    on the seed and the epoch alone; rank r of W takes the positions r, r + W, ... So a global
    batch holds the same samples however many processes share it, and a resumed run goes on
    where it stopped without reading what came before.

    Args:
        dataset (Sized): The dataset.
        seed (int, optional): Seed of the run, equal on all processes. Defaults to None: drawn
            once and shared.
        shuffle (bool): Permute; otherwise keep the order. Defaults to True.
    """

    def __init__(self, dataset: Sized, seed: int | None = None, shuffle: bool = True) -> None:
        self.size = len(dataset)
        if self.size == 0:
            raise ValueError("StepSampler: the dataset is empty; there is nothing to train on.")
        self.rank, self.world_size = get_dist_info()
        self.seed = int(sync_random_seed() if seed is None else seed)
        self.shuffle = shuffle
        self.start = 0

    def set_start(self, position: int) -> None:
        """Makes the next iteration begin at ``position``, counted over all processes.

        Args:
            position (int): Samples that the run has used: steps times global batch.
        """
        if position < 0:
            raise ValueError(f"StepSampler: position is {position}; allowed are 0 and more.")
        self.start = position

    def __iter__(self) -> Iterator[SampleIndex]:
        position = self.start + self.rank
        epoch, order = -1, np.arange(self.size)
        while True:
            if self.shuffle and position // self.size != epoch:
                epoch = position // self.size
                order = self._permutation(epoch)
            yield SampleIndex(int(order[position % self.size]), position, self.seed)
            position += self.world_size

    def __len__(self) -> int:
        """Size of the dataset, by mmengine's convention for endless samplers."""
        return self.size

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: the epoch follows from the position."""

    def _permutation(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        # RandomState, unlike Generator, promises the same stream in every NumPy version.
        bits = np.random.MT19937(np.random.SeedSequence((self.seed, epoch)))
        return np.random.RandomState(bits).permutation(self.size)
