"""Guesses that are spelt out: what the values of all masks together look like."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from mmseg_eomt.datasets.check.findings import ERROR, WARNING, Finding
from mmseg_eomt.datasets.check.split_tally import UNKNOWN, SplitTally
from mmseg_eomt.datasets.data_description import DataDescription
from mmseg_eomt.errors import ranges, shorten

_MANY = 64  # unknown values of a picture or of smoothed masks, not of a forgotten class
_PICTURE = 0.75  # share of pixels without a class that is more than smoothed edges
_NEAR, _MOSTLY_NEAR = 8, 0.85  # JPEG scatters values around the class ids
_RARE = 0.05  # share of pixels of one value along smoothed edges


def likely_mistakes(tally: SplitTally, description: DataDescription) -> list[Finding]:
    """Likely mistakes of one split, each with what to do."""
    guess = (
        _swapped(tally) or _mask_is_image(tally) or _values(tally, description) or _one_value(tally)
    )
    if guess is None:
        return []
    if tally.classes.ignores_unknown and tally.numbers.unknown_pixels:
        # The user has said that such values are meant to be there.
        guess = dataclasses.replace(guess, severity=WARNING)
    return [guess]


def _finding(severity: str, code: str, tally: SplitTally, message: str) -> Finding:
    return Finding(severity, code, tally.name, f"Likely mistake: {message}")


def _swapped(tally: SplitTally) -> Finding | None:
    wrong_masks = sum(len(tally.faults.get(code, ())) for code in ("mask_mode", "jpeg_mask"))
    wrong_masks += tally.most_values >= _MANY
    if not tally.readable_images or tally.flat_images < tally.readable_images:
        return None
    if not wrong_masks:
        return None
    return _finding(
        ERROR,
        "guess_swapped",
        tally,
        "the images are grey with a few values and the masks are pictures: are the folders of "
        "images and masks exchanged?",
    )


def _mask_is_image(tally: SplitTally) -> Finding | None:
    if not tally.image_masks or tally.image_masks * 2 < tally.readable_masks:
        return None
    return _finding(
        ERROR,
        "guess_mask_is_image",
        tally,
        f"{tally.image_masks} of {tally.readable_masks} masks hold the grey values of their "
        "image: the mask folder seems to hold copies of the images.",
    )


def _values(tally: SplitTally, description: DataDescription) -> Finding | None:
    seen = sorted(value for value in tally.value_pixels if isinstance(value, int))
    if not seen or len(seen) != len(tally.value_pixels):
        return None
    labels = sorted(
        label for entry in description.entries for label in entry.labels if isinstance(label, int)
    )
    if not labels:
        return None
    unknown = [value for value in seen if tally.classes[value] == UNKNOWN]
    ignored = set(description.ignore_index)
    names = f"values {_ranges(seen)}, but the classes are {_ranges(labels)}"
    return (
        _stretched(tally, seen, labels, unknown, ignored)
        or _inverted(tally, seen, labels, names)
        or _off_by_one(tally, seen, labels, unknown, ignored, names)
        or (_unknown_ones(tally, seen, unknown, labels) if unknown else None)
    )


def _stretched(
    tally: SplitTally,
    seen: Sequence[int],
    labels: Sequence[int],
    unknown: Sequence[int],
    ignored: set[int],
) -> Finding | None:
    """Class ids multiplied so that they can be seen: 0 and 255; 0, 127, 255; 0, 50, 100."""
    # With two classes ignore_index swallows the 255 without a word.
    if not unknown and (seen != [0, 255] or labels != [0, 1]):
        return None
    for values in (seen, [value for value in seen if value not in ignored]):
        factor = _factor(values, labels)
        if factor is None:
            continue
        dropped = " 255 is in ignore_index: these pixels would be dropped in silence."
        example = ", ".join(f"{round(value / factor)} has {value}" for value in values[:4])
        # A small validation set may really lack the one class and hold unlabelled pixels.
        certain = bool(unknown) or tally.name == "train"
        return _finding(
            ERROR if certain else WARNING,
            "guess_scaled",
            tally,
            f"the masks hold {' and '.join(_ranges(values).rsplit(', ', 1))} only, but the "
            f"classes are {_ranges(labels)}: scaled masks, class ids multiplied by {factor:g} to "
            f"be visible?{'' if unknown else dropped} Divide the values, or give them as labels "
            f"(class {example}).",
        )
    return None


def _factor(values: Sequence[int], labels: Sequence[int]) -> float | None:
    """What class ids would have to be multiplied by to become ``values``."""
    if len(values) < 2 or (set(values) - {0}) & set(labels):
        return None
    gap = min(high - low for low, high in itertools.pairwise(values))
    last = max(labels)
    for factor in (max(values) / last if last else 0.0, 257.0, 256.0, float(gap)):
        if factor < 2:
            continue
        back = [round(value / factor) for value in values]
        # 127 and 128 both stand for the middle of 0, 1, 2 up to 255.
        near = all(abs(v - i * factor) < 1 for v, i in zip(values, back, strict=True))
        if near and len(set(back)) == len(back) and set(back) <= set(labels):
            return factor
    return None


def _inverted(
    tally: SplitTally, seen: Sequence[int], labels: Sequence[int], names: str
) -> Finding | None:
    if min(seen) < 128 or max(labels) > 127 or len(seen) < 2:
        return None
    if not {255 - value for value in seen} <= set(labels):
        return None
    return _finding(
        ERROR,
        "guess_inverted",
        tally,
        f"{names}: are the masks inverted (255 minus the class id)?",
    )


def _off_by_one(
    tally: SplitTally,
    seen: Sequence[int],
    labels: Sequence[int],
    unknown: Sequence[int],
    ignored: set[int],
    names: str,
) -> Finding | None:
    own = [value for value in seen if value not in ignored]
    never = set(labels) - set(seen)
    above, below = max(labels) + 1, min(labels) - 1
    if (
        own
        and unknown == [above]
        and min(labels) not in own
        and {v - 1 for v in own} <= set(labels)
    ):
        return _finding(
            ERROR,
            "guess_off_by_one",
            tally,
            f"{names}: off by one, ids that start at {min(own)}? Give each class its value as "
            f"labels: [VALUE], or number the classes from {min(own)}.",
        )
    if unknown == [above] and {v - 1 for v in own if v} <= set(labels) and 0 in own and 0 in labels:
        return _finding(
            ERROR,
            "guess_zero_unlabelled",
            tally,
            f"{names}: one value more than classes. Does 0 mean 'unlabelled' (ids that start at "
            "1)? Then number the classes from 1 and write ignore_index: [0, 255]; if not, class "
            f"{above} is missing from classes.",
        )
    if own and unknown == [below] and max(labels) in never and {v + 1 for v in own} <= set(labels):
        return _finding(
            ERROR,
            "guess_off_by_one",
            tally,
            f"{names}: off by one, ids that start at {below}? Number the classes from {below}.",
        )
    return None


def _unknown_ones(
    tally: SplitTally,
    seen: Sequence[int],
    unknown: Sequence[int],
    labels: Sequence[int],
) -> Finding | None:
    total = sum(tally.value_pixels.values())
    share = sum(tally.value_pixels[value] for value in unknown) / total
    if len(unknown) >= _MANY or tally.most_values >= _MANY:
        near = sum(
            pixels
            for value, pixels in tally.value_pixels.items()
            if isinstance(value, int) and min(abs(value - one) for one in labels) <= _NEAR
        )
        if share > _PICTURE and near < _MOSTLY_NEAR * total:
            message = f"{tally.most_values} values in one mask: are these pictures, not masks?"
            return _finding(ERROR, "guess_pictures", tally, message)
        return _smoothed(tally, share, len(unknown))
    between = [value for value in unknown if min(labels) < value < max(seen)]
    rare = max(tally.value_pixels[value] for value in unknown) < _RARE * total
    if len(between) >= 3 and len(between) * 2 > len(unknown) and rare:
        return _smoothed(tally, share, len(unknown))
    if len(unknown) > 1:
        return None
    value = unknown[0]
    if value == 0:
        message = (
            "0 is in no class: background? Add '0: background' to classes, or 0 to ignore_index."
        )
    elif value in (254, 255, 65535) or value == max(labels) + 1 or value == 100:
        message = (
            f"{value} is the only value without a class: does it mean 'unlabelled'? Then write "
            f"ignore_index: [{value}]; otherwise a class is missing."
        )
    else:
        return None
    return _finding(ERROR, "guess_unlisted", tally, message)


def _smoothed(tally: SplitTally, share: float, count: int) -> Finding:
    return _finding(
        ERROR,
        "guess_smoothed",
        tally,
        f"{count} unknown values on {share:.1%} of the pixels, between the class ids: were the "
        "masks resized or drawn with smooth edges, or saved as JPEG in between? Export them "
        "again, with nearest neighbour and without antialiasing.",
    )


def _one_value(tally: SplitTally) -> Finding | None:
    if tally.readable_masks < 2 or len(tally.value_pixels) != 1:
        return None
    value = next(iter(tally.value_pixels))
    return _finding(
        WARNING,
        "guess_one_value",
        tally,
        f"all {tally.readable_masks} masks hold the value {value} and nothing else: were the "
        "masks exported empty?",
    )


def _ranges(values: Sequence[int]) -> str:
    return shorten(ranges(values, ".."))
