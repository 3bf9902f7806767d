"""The check at the start of training: names, sizes of files and a sample of masks, no image.

The dataset itself has looked at names, headers and mask values by then, and refuses what it
cannot read. This looks for what can be read but is wrong, and explains what was refused.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from mmseg_eomt.datasets.check.file_lists import list_pairs
from mmseg_eomt.datasets.check.findings import ERROR, WARNING, FileNote, Finding, counted
from mmseg_eomt.datasets.check.likely_mistakes import likely_mistakes
from mmseg_eomt.datasets.check.pair_facts import read_mask_only
from mmseg_eomt.datasets.check.split_rules import unlabelled_share
from mmseg_eomt.datasets.check.split_tally import SplitTally, ValueClasses
from mmseg_eomt.datasets.data_description import DataDescription
from mmseg_eomt.datasets.file_pairs import FilePair, every_nth

_MASKS = 24  # of each split
_THREADS = 8
_LOOKED_INTO = 2000  # files of equal size of which a kilobyte is read


def quick_check(description: DataDescription, splits: Sequence[str]) -> list[Finding]:
    """Likely mistakes in a sample of the masks, and files that two splits share.

    Args:
        description (DataDescription): Of the dataset.
        splits (Sequence[str]): Splits of the run.

    Returns:
        list[Finding]: An error is certain: all masks of the split were read for it.
    """
    pairs = {split: list_pairs(description.folders(split), split)[0] for split in splits}
    values = ValueClasses(description)
    findings = []
    for split, of_split in pairs.items():
        findings += _masks(split, of_split, description, values)
    names = list(pairs)
    for position, first in enumerate(names):
        for second in names[position + 1 :]:
            findings += _shared(first, pairs[first], second, pairs[second])
    return findings


def _masks(
    split: str, pairs: Sequence[FilePair], description: DataDescription, values: ValueClasses
) -> list[Finding]:
    sample = every_nth(pairs, _MASKS)
    tally = _read(SplitTally(split, values, description.num_classes), sample)
    guesses = likely_mistakes(tally, description)
    if any(guess.severity == ERROR for guess in guesses) and len(pairs) > len(sample):
        # It ends the run, so it has to hold for all of them. Sound data clear themselves soon.
        rest = [pair for pair in pairs if pair not in set(sample)]
        for start in range(0, len(rest), _MASKS):
            tally = _read(tally, rest[start : start + _MASKS])
            guesses = likely_mistakes(tally, description)
            if not guesses:
                return []
    if guesses:
        return guesses
    if tally.readable_masks and not tally.labelled and "unknown_value" not in tally.faults:
        message = (
            f"none of the {counted(tally.readable_masks, 'mask')} looked at has a labelled pixel: "
            "look at ignore_index and ignore_classes."
        )
        return [Finding(WARNING, "no_labelled_pixel", split, message)]
    return unlabelled_share(tally)


def _read(tally: SplitTally, pairs: Iterable[FilePair]) -> SplitTally:
    with ThreadPoolExecutor(_THREADS) as pool:
        for facts in pool.map(read_mask_only, pairs):
            tally.add_mask(facts)
    return tally


def _shared(
    first: str, first_pairs: Sequence[FilePair], second: str, second_pairs: Sequence[FilePair]
) -> list[Finding]:
    """Image files of equal content; other formats of one picture are left to the full check."""
    sizes: dict[int, list[str]] = {}
    for pair in first_pairs:
        sizes.setdefault(_size(pair.image), []).append(pair.image)
    alike = [pair.image for pair in second_pairs if _size(pair.image) in sizes][:_LOOKED_INTO]
    wanted = {_size(path) for path in alike}
    others = [path for size in wanted for path in sizes[size]][:_LOOKED_INTO]
    known = {_middle(path): path for path in others}
    notes = []
    for path in alike:
        other = known.get(_middle(path))
        if other is not None and _digest(path) == _digest(other):
            notes.append(FileNote(path, f"is {other}"))
    if not notes:
        return []
    message = (
        f"{counted(len(notes), 'image')} of {second} (of {len(second_pairs)}) "
        f"{'is' if len(notes) == 1 else 'are'} in {first} as well: scores on {second} will be too "
        "good."
    )
    return [Finding(WARNING, "leakage", f"{first}, {second}", message, tuple(notes))]


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _middle(path: str) -> tuple[int, bytes]:
    """Size and a kilobyte from the middle, which tells pictures of equal size apart."""
    size = _size(path)
    try:
        with open(path, "rb") as file:
            file.seek(max(0, size // 2))
            return size, file.read(1024)
    except OSError:
        return -1, path.encode()


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.blake2b(file.read(), digest_size=16).digest()
