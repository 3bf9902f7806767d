"""What a check reports: findings with file names, and numbers by split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)
EXIT_CODES = {NOTE: 0, WARNING: 1, ERROR: 2}


@dataclass(frozen=True)
class FileNote:
    """A file and what is wrong with it."""

    path: str
    detail: str = ""


@dataclass(frozen=True)
class Finding:
    """One kind of fault in one split.

    Attributes:
        severity (str): ``'error'`` (training refuses or learns nonsense), ``'warning'`` (training
            runs, but probably not as meant) or ``'note'``.
        code (str): Short name of the kind, stable between releases.
        split (str): The split, or '' for the whole dataset.
        message (str): What was found, and what to do.
        files (tuple[FileNote]): The files it was found in.
    """

    severity: str
    code: str
    split: str
    message: str
    files: tuple[FileNote, ...] = ()


@dataclass
class SplitNumbers:
    """Numbers of one split.

    Attributes:
        pairs (int): Pairs of image and mask.
        read (int): Pairs whose image and mask were both readable.
        class_pixels (list[int]): Pixels by internal class id.
        class_images (list[int]): Masks that hold the class, by internal class id.
        ignored_pixels (int): Unlabelled pixels.
        unknown_pixels (int): Pixels of values that no class claims.
        sizes (dict): Number of images by (width, height).
    """

    pairs: int = 0
    read: int = 0
    class_pixels: list[int] = field(default_factory=list)
    class_images: list[int] = field(default_factory=list)
    ignored_pixels: int = 0
    unknown_pixels: int = 0
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)


@dataclass
class DatasetReport:
    """The result of `check_dataset`.

    Attributes:
        source (str): What was checked.
        classes (list[str]): Names by internal id.
        class_ids (list[int]): The user's ids by internal id.
        palette (list[list[int]]): RGB colours by internal id.
        splits (dict[str, SplitNumbers]): Numbers by split.
        findings (list[Finding]): Errors first.
        samples (list): Pairs of paths (image, mask) by split, for pictures.
        crop (tuple[int, int] | None): Training crop, (height, width).
        in_channels (int): Channels the images were read with.
    """

    source: str
    classes: list[str] = field(default_factory=list)
    class_ids: list[int] = field(default_factory=list)
    palette: list[list[int]] = field(default_factory=list)
    splits: dict[str, SplitNumbers] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    samples: list[tuple[str, str, str]] = field(default_factory=list)
    crop: tuple[int, int] | None = None
    in_channels: int = 3

    def of(self, severity: str) -> list[Finding]:
        """The findings of a severity."""
        return [finding for finding in self.findings if finding.severity == severity]

    @property
    def exit_code(self) -> int:
        """0 without warnings, 1 with warnings, 2 with errors."""
        return max((EXIT_CODES[finding.severity] for finding in self.findings), default=0)

    def add(self, findings: Iterable[Finding]) -> None:
        """Adds findings and puts errors first, each kind in the order it was found."""
        self.findings.extend(findings)
        self.findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, fit for JSON; every file is listed."""
        return {
            "source": self.source,
            "exit_code": self.exit_code,
            "counts": {severity: len(self.of(severity)) for severity in SEVERITIES},
            "crop": list(self.crop) if self.crop else None,
            "classes": [
                {"id": class_id, "name": name, "color": color}
                for class_id, name, color in zip(
                    self.class_ids, self.classes, self.palette, strict=True
                )
            ],
            "splits": {name: _numbers(split) for name, split in self.splits.items()},
            "findings": [
                {
                    "severity": finding.severity,
                    "code": finding.code,
                    "split": finding.split,
                    "message": finding.message,
                    "files": [{"path": n.path, "detail": n.detail} for n in finding.files],
                }
                for finding in self.findings
            ],
        }


def counted(count: int, thing: str, things: str | None = None) -> str:
    """``1 mask``, ``2 masks``."""
    return f"{count} {thing if count == 1 else things or thing + 's'}"


def _numbers(split: SplitNumbers) -> dict[str, Any]:
    ordered = sorted(split.sizes.items(), key=lambda item: (-item[1], item[0]))
    return {
        "pairs": split.pairs,
        "read": split.read,
        "class_pixels": split.class_pixels,
        "class_images": split.class_images,
        "ignored_pixels": split.ignored_pixels,
        "unknown_pixels": split.unknown_pixels,
        "sizes": [{"width": w, "height": h, "images": n} for (w, h), n in ordered],
    }
