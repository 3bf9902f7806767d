"""From what was read of each split to findings."""

from __future__ import annotations

from collections.abc import Sequence

from mmseg_eomt.datasets.check.findings import (
    ERROR,
    NOTE,
    WARNING,
    FileNote,
    Finding,
    counted,
)
from mmseg_eomt.datasets.check.split_tally import SplitTally
from mmseg_eomt.datasets.data_description import DataDescription
from mmseg_eomt.errors import shorten

_MOSTLY_IGNORED = 0.95  # share of unlabelled pixels that is worth a word
_SMALLEST_SIDE = 32  # two patches of 16: less shows nothing

# Faults of single files: severity, what is wrong (one, several), the mend.
_FILE_RULES: dict[str, tuple[str, str, str, str]] = {
    "empty_image_file": (ERROR, "image is an empty file", "images are empty files", "Replace"),
    "empty_mask_file": (ERROR, "mask is an empty file", "masks are empty files", "Replace"),
    "truncated_image": (ERROR, "image is cut off", "images are cut off", "Copy"),
    "truncated_mask": (ERROR, "mask is cut off", "masks are cut off", "Copy"),
    "unreadable_image": (ERROR, "image is unreadable", "images are unreadable", "Replace"),
    "unreadable_mask": (ERROR, "mask is unreadable", "masks are unreadable", "Replace"),
    "jpeg_mask": (ERROR, "mask is a JPEG inside", "masks are JPEGs inside", "Export"),
    "mask_mode": (ERROR, "mask has colours or alpha", "masks have colours or alpha", "Convert"),
    "size_mismatch": (ERROR, "mask differs in size", "masks differ in size", "Resize"),
    "unknown_value": (
        ERROR,
        "mask holds values that no class claims",
        "masks hold values that no class claims",
        "Claim",
    ),
    "unknown_ignored": (
        NOTE,
        "mask holds values that no class claims",
        "masks hold values that no class claims",
        "Ignored",
    ),
    "no_labelled_pixel": (
        WARNING,
        "mask has no labelled pixel",
        "masks have no labelled pixel",
        "Label",
    ),
}
_MENDS = {
    "Replace": "Replace the files, or remove them with their partners.",
    "Copy": "Copy or download them again, or remove them with their partners.",
    "Export": "JPEG changes class ids: export the masks again as PNG.",
    "Convert": "Write the class ids as grey or palette PNG, or give the colours as labels.",
    "Resize": "Resize the masks with nearest neighbour, or pair the right files.",
    "Claim": "Add the values to the labels of a class, or to ignore_index if they mean "
    "'unlabelled'.",
    "Ignored": "They count as unlabelled, as unknown_values: ignore says.",
    "Label": "They teach nothing: label them, or remove them with their images.",
}


def split_findings(
    tally: SplitTally, description: DataDescription, crop: tuple[int, int] | None
) -> list[Finding]:
    """Faults of files, classes and sizes of one split."""
    findings = []
    total = tally.numbers.pairs
    for code, (severity, one, several, mend) in _FILE_RULES.items():
        files = tally.faults.get(code, [])
        if files:
            what = several
            if len(files) == 1:
                # "1 of 8 images is cut off", "1 of 1 image is cut off"
                noun, rest = one.split(" ", 1)
                what = f"{noun if total == 1 else noun + 's'} {rest}"
            message = f"{len(files)} of {total} {what}. {_MENDS[mend]}"
            findings.append(Finding(severity, code, tally.name, message, tuple(files)))
    findings += unlabelled_share(tally)
    findings += _sizes(tally, crop)
    findings += _unseen(tally, description)
    return findings


def unlabelled_share(tally: SplitTally) -> list[Finding]:
    """A word if nearly everything is unlabelled."""
    numbers = tally.numbers
    everything = sum(numbers.class_pixels) + numbers.ignored_pixels + numbers.unknown_pixels
    share = numbers.ignored_pixels / everything if everything else 0.0
    if not _MOSTLY_IGNORED < share < 1.0:
        return []
    message = (
        f"{share:.1%} of all pixels are unlabelled. Right if objects are labelled sparsely; "
        "otherwise look at ignore_index and ignore_classes."
    )
    return [Finding(WARNING, "mostly_unlabelled", tally.name, message)]


def _sizes(tally: SplitTally, crop: tuple[int, int] | None) -> list[Finding]:
    findings = []
    sizes = tally.numbers.sizes
    tiny = {size: n for size, n in sizes.items() if min(size) < _SMALLEST_SIDE}
    if tiny:
        shown = shorten([f"{w}x{h} ({counted(n, 'image')})" for (w, h), n in sorted(tiny.items())])
        message = (
            f"{counted(sum(tiny.values()), 'image has', 'images have')} a side below "
            f"{_SMALLEST_SIDE} pixels: {shown}. Are they thumbnails?"
        )
        findings.append(Finding(WARNING, "tiny_image", tally.name, message))
    if crop and sizes:
        total = sum(sizes.values())
        smaller = sum(n for (w, h), n in sizes.items() if h < crop[0] or w < crop[1])
        if smaller:
            message = (
                f"{smaller} of {total} images are smaller than the training crop of "
                f"{crop[0]}x{crop[1]} (height x width) on a side: crops are filled up. A smaller "
                "image size trains faster."
            )
            findings.append(Finding(NOTE, "smaller_than_crop", tally.name, message))
        far = sum(n for (w, h), n in sizes.items() if min(w, h) > 4 * max(crop))
        if far:
            message = (
                f"{far} of {total} images are more than four times the training crop of "
                f"{crop[0]}x{crop[1]} on each side: a crop sees little of them."
            )
            findings.append(Finding(NOTE, "larger_than_crop", tally.name, message))
    return findings


def _unseen(tally: SplitTally, description: DataDescription) -> list[Finding]:
    if not tally.readable_masks:
        return []
    unseen = [
        f"{class_id} ({name})"
        for class_id, name, images in zip(
            description.class_ids,
            description.classes,
            tally.numbers.class_images,
            strict=True,
        )
        if not images
    ]
    if not unseen:
        return []
    what = counted(len(unseen), "class is", "classes are")
    why = "The model cannot learn them" if tally.name == "train" else "Their IoU cannot be measured"
    message = f"{what} in no mask: {shorten(unseen)}. {why}: correct the ids, or add images."
    severity = WARNING if tally.name == "train" else NOTE
    return [Finding(severity, "class_never_seen", tally.name, message)]


def duplicates(tallies: Sequence[SplitTally]) -> list[Finding]:
    """The same image twice in a split, or in two splits; the same mask for unlike images."""
    findings = []
    for tally in tallies:
        findings += _within(tally)
    for position, first in enumerate(tallies):
        known = {one.image: one.pair.image for one in first.digests}
        for second in tallies[position + 1 :]:
            notes = [
                FileNote(one.pair.image, f"is {known[one.image]}")
                for one in second.digests
                if one.image in known
            ]
            if notes:
                where = f"{first.name}, {second.name}"
                message = (
                    f"{counted(len(notes), 'image')} of {second.name} (of "
                    f"{second.numbers.pairs}) {'is' if len(notes) == 1 else 'are'} in "
                    f"{first.name} as well, pixel by pixel. Scores on {second.name} will be too "
                    "good: remove them from one of the two."
                )
                findings.append(Finding(WARNING, "leakage", where, message, tuple(notes)))
    return findings


def _within(tally: SplitTally) -> list[Finding]:
    images: dict[bytes, tuple[str, bytes]] = {}
    masks: dict[bytes, tuple[str, bytes]] = {}
    same, contradicting, same_mask = [], [], []
    for one in tally.digests:
        image, mask = one.pair
        path, other_mask = images.setdefault(one.image, (image, one.mask))
        if path != image:
            same.append(FileNote(image, f"is {path}"))
            if other_mask != one.mask:
                contradicting.append(FileNote(image, f"is {path}, with another mask"))
        # Masks of one value are often equal: nothing to see on the picture.
        if one.one_value:
            continue
        path, other_image = masks.setdefault(one.mask, (mask, one.image))
        if path != mask and other_image != one.image:
            same_mask.append(FileNote(mask, f"is {path}"))
    findings = []
    for code, notes, what in (
        ("duplicate_image", same, "appear twice, pixel by pixel. Remove the copies"),
        (
            "contradicting_masks",
            contradicting,
            "appear twice with different masks. Keep the right one",
        ),
        (
            "duplicate_mask",
            same_mask,
            "equal the mask of another image, although the images differ. Copied by mistake?",
        ),
    ):
        if notes:
            thing = "mask" if code == "duplicate_mask" else "image"
            if len(notes) == 1:
                what = what.replace("appear ", "appears ", 1).replace("equal ", "equals ", 1)
            message = (
                f"{counted(len(notes), thing)} {what.rstrip('.?')}{'?' if '?' in what else '.'}"
            )
            findings.append(Finding(WARNING, code, tally.name, message, tuple(notes)))
    return findings


def across_splits(tallies: Sequence[SplitTally], description: DataDescription) -> list[Finding]:
    """Classes that one split has and the training split lacks."""
    train = next((tally for tally in tallies if tally.name == "train"), None)
    if train is None or not train.readable_masks:
        return []
    findings = []
    for tally in tallies:
        missing = [
            f"{description.class_ids[i]} ({description.classes[i]})"
            for i, images in enumerate(tally.numbers.class_images)
            if images and not train.numbers.class_images[i]
        ]
        if missing:
            message = (
                f"{counted(len(missing), 'class', 'classes')} of {tally.name} not in train: "
                f"{shorten(missing)}. They will score 0: share out the images anew."
            )
            findings.append(Finding(WARNING, "class_not_in_train", tally.name, message))
    return findings
