"""A report as text for the terminal and for logs."""

from __future__ import annotations

from mmseg_eomt.datasets.check.findings import (
    SEVERITIES,
    DatasetReport,
    Finding,
    SplitNumbers,
    counted,
    shorten,
)

_SHOWN = 5  # files of a finding


def text_report(report: DatasetReport, *, max_files: int = _SHOWN) -> str:
    """Findings with file names, then the numbers of each split.

    Args:
        report (DatasetReport): What was found.
        max_files (int): Files named of each finding; JSON names all. Defaults to 5.

    Returns:
        str: Lines.
    """
    lines = [f"{report.source}: " + ", ".join(_counts(report))]
    for finding in report.findings:
        lines.append("")
        lines += finding_lines(finding, max_files)
    for name, split in report.splits.items():
        lines.append("")
        lines += _split_lines(name, split, report)
    return "\n".join(lines)


def finding_lines(finding: Finding, max_files: int = _SHOWN) -> list[str]:
    """A finding and the first of its files."""
    place = f" {finding.split}:" if finding.split else ""
    lines = [f"{finding.severity.upper()}{place} {finding.message} [{finding.code}]"]
    for note in finding.files[:max_files]:
        lines.append(f"    {note.path}" + (f": {note.detail}" if note.detail else ""))
    if len(finding.files) > max_files:
        lines.append(f"    ... and {len(finding.files) - max_files} more")
    return lines


def _counts(report: DatasetReport) -> list[str]:
    images = sum(split.pairs for split in report.splits.values())
    parts = [counted(images, "pair of image and mask", "pairs of image and mask")]
    return parts + [counted(len(report.of(severity)), severity) for severity in SEVERITIES]


def _split_lines(name: str, split: SplitNumbers, report: DatasetReport) -> list[str]:
    sizes = sorted(split.sizes.items(), key=lambda item: (-item[1], item[0]))
    shown = shorten([f"{w}x{h} ({n})" for (w, h), n in sizes], 4) or "none"
    lines = [f"{name}: {counted(split.pairs, 'pair')}, sizes {shown}"]
    rows = [
        (f"{class_id} {class_name}", pixels, images)
        for class_id, class_name, pixels, images in zip(
            report.class_ids,
            report.classes,
            split.class_pixels,
            split.class_images,
            strict=True,
        )
    ]
    width = max([len(row[0]) for row in rows] + [len("unlabelled")])
    total = sum(split.class_pixels) + split.ignored_pixels + split.unknown_pixels
    if total:
        lines.append(f"  {'class':<{width}}  {'pixels':>14}  {'share':>7}  {'images':>7}")
        for label, pixels, images in rows:
            lines.append(f"  {label:<{width}}  {pixels:>14,}  {pixels / total:>7.2%}  {images:>7}")
        for label, pixels in (
            ("unlabelled", split.ignored_pixels),
            ("unknown", split.unknown_pixels),
        ):
            if pixels:
                lines.append(f"  {label:<{width}}  {pixels:>14,}  {pixels / total:>7.2%}")
    return lines
