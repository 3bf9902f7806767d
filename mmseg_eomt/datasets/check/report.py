"""The findings of a check as text and as one HTML page."""

from __future__ import annotations

import base64
from html import escape
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mmseg_eomt.datasets.check.findings import (
    SEVERITIES,
    DatasetReport,
    Finding,
    SplitNumbers,
    counted,
)
from mmseg_eomt.datasets.check.split_tally import UNKNOWN, ValueClasses
from mmseg_eomt.datasets.data_description import DataDescription, load_data
from mmseg_eomt.datasets.label_table import IGNORED
from mmseg_eomt.errors import shorten
from mmseg_eomt.images.reading import as_rgb, read_image, read_mask

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


_SHOWN_IN_HTML = 50  # files of a finding
_PICTURE_SIDE = 320  # pixels
_UNKNOWN_COLOR = (255, 0, 255)
_STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.45 system-ui,sans-serif;max-width:1080px;margin:0 auto;padding:24px}
h1{font-size:24px;margin:0 0 4px} h2{font-size:19px;margin:32px 0 8px} p{margin:4px 0}
.finding{border-left:4px solid;padding:6px 12px;margin:10px 0;background:#8881}
.error{border-color:#c62828}.warning{border-color:#e08600}.note{border-color:#2d72c4}
.tag{font-weight:600;text-transform:uppercase;font-size:12px;letter-spacing:.04em}
code,li{font-family:ui-monospace,monospace;font-size:13px;overflow-wrap:anywhere}
ul{margin:4px 0;padding-left:20px} summary{cursor:pointer}
table{border-collapse:collapse;width:100%} td,th{padding:3px 8px;text-align:right}
td:first-child,th:first-child{text-align:left} tr+tr{border-top:1px solid #8883}
.bar{display:inline-block;height:11px;border-radius:2px;vertical-align:middle;min-width:1px}
.barcell{width:34%;text-align:left} .swatch{display:inline-block;width:12px;height:12px;
border-radius:2px;margin-right:6px;vertical-align:-1px;border:1px solid #8886}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(320px,1fr));gap:12px}
figure{margin:0} figure div{display:flex;gap:4px} figure img{width:50%;object-fit:contain}
figcaption{font-size:12px;overflow-wrap:anywhere;opacity:.8}
"""


def html_report(report: DatasetReport, data: Any) -> str:
    """Findings, class histograms and pictures with their labels laid over.

    Args:
        report (DatasetReport): What was found.
        data: What was checked, as for `load_data`; only read if there are pictures to draw.

    Returns:
        str: The HTML text.
    """
    parts = [f"<h1>{escape(report.source)}</h1>", f"<p>{escape(_headline(report))}</p>"]
    parts += ["<h2>Findings</h2>"] if report.findings else ["<p>Nothing is wrong.</p>"]
    for finding in report.findings:
        place = f" {escape(finding.split)}" if finding.split else ""
        parts.append(
            f'<div class="finding {finding.severity}"><p><span class="tag">{finding.severity}'
            f"</span>{place} <code>{escape(finding.code)}</code></p>"
            f"<p>{escape(finding.message)}</p>{_files(finding.files)}</div>"
        )
    description = load_data(data, check_splits=[]) if report.samples else None
    for name, split in report.splits.items():
        parts += _split(name, split, report)
        if description is not None:
            values = ValueClasses(description)
            figures = [
                _figure(image, mask, description, values, report.in_channels)
                for split_name, image, mask in report.samples
                if split_name == name
            ]
            if figures:
                parts.append(f'<div class="pictures">{"".join(figures)}</div>')
    title = escape(f"Dataset check: {report.source}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _headline(report: DatasetReport) -> str:
    pairs = sum(split.pairs for split in report.splits.values())
    counts = [counted(len(report.of(severity)), severity) for severity in SEVERITIES]
    return f"{counted(pairs, 'pair')} of image and mask; " + ", ".join(counts)


def _files(files: Any) -> str:
    if not files:
        return ""
    items = [
        f"<li>{escape(note.path)}" + (f": {escape(note.detail)}" if note.detail else "") + "</li>"
        for note in files[:_SHOWN_IN_HTML]
    ]
    if len(files) > _SHOWN_IN_HTML:
        items.append(f"<li>... and {len(files) - _SHOWN_IN_HTML} more (--json names all)</li>")
    opened = " open" if len(files) <= 5 else ""
    return (
        f"<details{opened}><summary>{counted(len(files), 'file')}</summary>"
        f"<ul>{''.join(items)}</ul></details>"
    )


def _split(name: str, split: SplitNumbers, report: DatasetReport) -> list[str]:
    parts = [f"<h2>{escape(name)}: {counted(split.pairs, 'pair')}</h2>"]
    rows = list(
        zip(
            report.class_ids,
            report.classes,
            report.palette,
            split.class_pixels,
            split.class_images,
            strict=True,
        )
    )
    total = sum(split.class_pixels) + split.ignored_pixels + split.unknown_pixels
    if total:
        most = max([*split.class_pixels, split.ignored_pixels, split.unknown_pixels])
        cells = [
            _row(f"{class_id} {label}", color, pixels, total, most, str(images))
            for class_id, label, color, pixels, images in rows
        ]
        for label, color, pixels in (
            ("unlabelled", [136, 136, 136], split.ignored_pixels),
            ("unknown", list(_UNKNOWN_COLOR), split.unknown_pixels),
        ):
            if pixels:
                cells.append(_row(label, color, pixels, total, most, ""))
        parts.append(
            "<table><tr><th>class</th><th></th><th>share</th><th>pixels</th><th>images</th></tr>"
            + "".join(cells)
            + "</table>"
        )
    if split.sizes:
        ordered = sorted(split.sizes.items(), key=lambda item: (-item[1], item[0]))
        shown = ", ".join(f"{w}x{h} ({n})" for (w, h), n in ordered[:12])
        more = f", and {len(ordered) - 12} more" if len(ordered) > 12 else ""
        parts.append(f"<p>Sizes, width x height (images): {shown}{more}</p>")
    return parts


def _row(label: str, color: Any, pixels: int, total: int, most: int, images: str) -> str:
    rgb = ",".join(map(str, color))
    return (
        f'<tr><td><span class="swatch" style="background:rgb({rgb})"></span>{escape(label)}</td>'
        f'<td class="barcell"><span class="bar" style="width:{pixels / most:.1%};'
        f'background:rgb({rgb})"></span></td><td>{pixels / total:.2%}</td>'
        f"<td>{pixels:,}</td><td>{images}</td></tr>"
    )


def _figure(
    image_path: str,
    mask_path: str,
    description: DataDescription,
    values: ValueClasses,
    channels: int,
) -> str:
    try:
        image, mask = read_image(image_path, channels=channels), read_mask(mask_path)
    except (ValueError, OSError):
        return ""  # named among the findings
    image = _small(np.ascontiguousarray(as_rgb(image)[..., ::-1]), cv2.INTER_AREA)
    height, width = image.shape[:2]
    mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
    overlay = _overlay(image, mask, description, values)
    pictures = "".join(
        f'<img alt="" src="data:image/jpeg;base64,{_jpeg(one)}">' for one in (image, overlay)
    )
    return f"<figure><div>{pictures}</div><figcaption>{escape(image_path)}</figcaption></figure>"


def _overlay(
    image: NDArray[np.uint8],
    mask: NDArray[Any],
    description: DataDescription,
    values: ValueClasses,
) -> NDArray[np.uint8]:
    colors = image.copy()
    palette = description.palette
    rows = mask.reshape(-1, mask.shape[2]) if mask.ndim == 3 else mask.reshape(-1)
    found, where = np.unique(rows, axis=0 if mask.ndim == 3 else None, return_inverse=True)
    flat, where = colors.reshape(-1, 3), where.reshape(-1)
    # Beyond this a mask is a picture, and drawing each value would take long.
    for number, value in enumerate(found[:1000]):
        key = tuple(int(c) for c in value) if mask.ndim == 3 else int(value)
        label = values[key]
        if label == IGNORED:
            continue
        rgb = _UNKNOWN_COLOR if label == UNKNOWN else palette[label]
        flat[where == number] = rgb[::-1]
    return np.asarray(cv2.addWeighted(image, 0.4, colors, 0.6, 0), dtype=np.uint8)


def _small(image: NDArray[np.uint8], interpolation: int) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    scale = _PICTURE_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if scale > 1:
        interpolation = cv2.INTER_NEAREST
    return np.asarray(cv2.resize(image, size, interpolation=interpolation), dtype=np.uint8)


def _jpeg(image: NDArray[np.uint8]) -> str:
    content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return base64.b64encode(content.tobytes()).decode("ascii")
