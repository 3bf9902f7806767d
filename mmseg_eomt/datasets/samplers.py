"""Which sample stands at which place of a run, whatever the processes; rare classes more often."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.dist import all_gather_object, get_dist_info, sync_random_seed
from mmseg.registry import DATA_SAMPLERS
from numpy.typing import NDArray
from torch.utils.data import Sampler

from mmseg_eomt.datasets.label_table import IGNORED
from mmseg_eomt.errors import BadFileError


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


Presence = NDArray[np.bool_]  # [samples, classes]

_THREADS = 4  # decoding happens outside Python's lock


def class_presence(dataset: Any) -> Presence:
    """Reads all masks of a dataset, each process its share.

    Masks are read by the dataset's own step (`LoadAnnotations` or `LoadFolderAnnotations` in its
    pipeline), so that label maps and ignored classes are those of training.

    Args:
        dataset: A dataset of mmseg or `FolderSegDataset`, or mmengine's ConcatDataset or
            RepeatDataset of such.

    Returns:
        ndarray: ``bool [samples, classes]``; a class is present with one pixel or more. A bad
        file shows none if the dataset skips such files.

    Raises:
        ValueError: If the dataset names no classes, reads no masks, or a mask is wrong.
    """
    if isinstance(dataset, ConcatDataset):
        parts = [class_presence(part) for part in dataset.datasets]
        if len({part.shape[1] for part in parts}) > 1:
            raise ValueError(
                f"the parts of the dataset have {[part.shape[1] for part in parts]} classes; "
                "balancing needs the same classes in all."
            )
        return np.concatenate(parts)
    if isinstance(dataset, RepeatDataset):
        return np.tile(class_presence(dataset.dataset), (dataset.times, 1))
    classes = (getattr(dataset, "metainfo", None) or {}).get("classes")
    if not classes:
        raise ValueError(
            f"{type(dataset).__name__} names no classes in its metainfo, so they cannot be "
            "balanced. Use StepSampler."
        )
    read = _mask_reader(dataset)
    count, size = len(classes), len(dataset)
    rank, world = get_dist_info()
    skips = getattr(getattr(dataset, "description", None), "on_error", "raise") == "skip"

    def look(index: int) -> Presence:
        present = np.zeros(count, dtype=np.bool_)
        try:
            labels = read(index)
        except (BadFileError, OSError):
            if not skips:
                raise
            return present  # training passes over the file, and counts it
        values = np.flatnonzero(np.bincount(labels.ravel(), minlength=count))
        values = values[values != IGNORED]
        if len(values) and values[-1] >= count:
            info = dataset.get_data_info(index)
            raise ValueError(
                f"{info.get('seg_map_path')}: holds the label {values[-1]}; allowed are 0 to "
                f"{count - 1} and {IGNORED}. Correct the mask or the classes."
            )
        present[values] = True
        return present

    fault = ""
    mine: list[Presence] = []
    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            mine = list(pool.map(look, range(rank, size, world)))
    except (ValueError, OSError) as error:
        fault = str(error)
    # Faults travel as well: the others would wait for a process that has given up.
    shares = all_gather_object((mine, fault))
    for _, found in shares:
        if found:
            raise ValueError(found)
    result = np.zeros((size, count), dtype=np.bool_)
    for other, (rows, _) in enumerate(shares):
        if rows:
            result[other::world] = rows
    return result


def _mask_reader(dataset: Any) -> Callable[[int], NDArray[Any]]:
    """A function that gives a sample's labels ``[H, W]``, and reads nothing else."""
    steps = getattr(getattr(dataset, "pipeline", None), "transforms", [])
    loaders = [s for s in steps if type(s).__name__ in ("LoadAnnotations", "LoadFolderAnnotations")]
    if len(loaders) != 1 or not hasattr(dataset, "get_data_info"):
        raise ValueError(
            f"{type(dataset).__name__}: its pipeline has {len(loaders)} steps LoadAnnotations; "
            "balancing classes needs one, to read the masks."
        )
    loader = loaders[0]

    def read(index: int) -> NDArray[Any]:
        labels: NDArray[Any] = loader.transform(dataset.get_data_info(index))["gt_seg_map"]
        return labels

    return read


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
