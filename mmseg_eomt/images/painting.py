"""Classes as colours: palettes, overlays, and sheets of label maps beside their image.

Shape legend: H/W pixels, K classes.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mmseg_eomt.images.reading import as_rgb


def check_opacity(opacity: float) -> None:
    """An opacity that is no share is a ValueError."""
    if not 0.0 <= opacity <= 1.0:
        raise ValueError(f"opacity is {opacity}: it must lie between 0 and 1.")


def paint(
    image: NDArray[np.uint8],
    mask: NDArray[Any],
    palette: Mapping[int, tuple[int, int, int]],
    *,
    opacity: float,
) -> Image.Image:
    """An image with the colours of its classes over it.

    Args:
        image: `uint8 [H, W, C]` as of `as_pixels`.
        mask: Class ids `[H, W]`.
        palette: RGB colours by class id.
        opacity: Share of the class colours, 0 to 1.

    Raises:
        ValueError: If `opacity` is out of range, or mask and image differ in size.
    """
    check_opacity(opacity)
    pixels = as_rgb(image)
    if mask.shape != pixels.shape[:2]:
        raise ValueError(f"mask is {mask.shape}, the image {pixels.shape[:2]}: sizes differ.")
    table = np.zeros((max(palette) + 1, 3), np.float32)
    for class_id, colour in palette.items():
        table[class_id] = colour
    mixed = pixels * (1.0 - opacity) + table[mask] * opacity
    return Image.fromarray(np.clip(np.rint(mixed), 0, 255).astype(np.uint8))


# Consecutive hues lie far apart when they advance by the golden ratio's fraction of a turn.
_GOLDEN_TURN = 0.6180339887498949
_SATURATION_VALUE = ((0.75, 0.95), (0.95, 0.65), (0.45, 0.85))


def default_palette(count: int) -> list[tuple[int, int, int]]:
    """Distinct RGB colours. The first n are the same for every ``count >= n``.

    Args:
        count (int): Number of colours.

    Returns:
        list[tuple[int, int, int]]: Colours of 0 to 255, none twice and none black.
    """
    colors: dict[tuple[int, int, int], None] = {}
    step = 0
    while len(colors) < count:
        saturation, value = _SATURATION_VALUE[step % len(_SATURATION_VALUE)]
        rgb = colorsys.hsv_to_rgb(step * _GOLDEN_TURN % 1.0, saturation, value)
        red, green, blue = (round(channel * 255) for channel in rgb)
        colors.setdefault((red, green, blue))
        step += 1
    return list(colors)


Pixels = NDArray[np.uint8]
UNLABELLED = (0, 0, 0)
GAP = 4
LINE = 16


def fallback_palette(num_classes: int) -> list[tuple[int, int, int]]:
    """K colours, far apart in hue, the same at every call."""
    colours = []
    for index in range(num_classes):
        # The golden ratio keeps any number of consecutive hues apart.
        hue = (index * 0.618033988749895) % 1.0
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.65 if index % 2 else 0.9, 0.95)
        colours.append((round(red * 255), round(green * 255), round(blue * 255)))
    return colours


def colourise(labels: NDArray[np.integer], palette: Sequence[Sequence[int]]) -> Pixels:
    """Paints a label map.

    Args:
        labels (ndarray): ``[H, W]`` class indices; values outside 0..K-1 become black.
        palette (Sequence): K colours (red, green, blue), 0..255.

    Returns:
        ndarray: ``uint8 [H, W, 3]``.
    """
    table = np.asarray([*palette, UNLABELLED], dtype=np.uint8)
    index = np.where((labels >= 0) & (labels < len(palette)), labels, len(palette))
    return table[index]


def comparison(
    rows: Sequence[tuple[Pixels, NDArray[np.integer] | None, NDArray[np.integer]]],
    *,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    tile: int = 320,
) -> Pixels:
    """A sheet of image, truth and prediction, with a legend of the classes that occur.

    Args:
        rows (Sequence): Per image: pixels ``uint8 [H, W, 3]`` (RGB), truth ``[H, W]`` or None,
            prediction ``[H, W]``.
        classes (Sequence[str]): K names.
        palette (Sequence): K colours.
        tile (int): Width of a column in pixels. Defaults to 320.

    Returns:
        ndarray: ``uint8 [height, width, 3]``, RGB.

    Raises:
        ValueError: If there is no image, or names and colours differ in number.
    """
    if not rows:
        raise ValueError("A picture of predictions needs at least one image.")
    if len(classes) != len(palette):
        raise ValueError(
            f"{len(classes)} classes but {len(palette)} colours: the dataset's palette needs one "
            "colour per class."
        )
    present = sorted(
        {
            int(value)
            for _, truth, pred in rows
            for m in (truth, pred)
            if m is not None
            for value in np.unique(m)
            if 0 <= value < len(classes)
        }
    )
    strips = [_strip(image, truth, pred, palette, tile) for image, truth, pred in rows]
    width = 3 * tile + 2 * GAP
    legend = _legend(present, classes, palette, width)
    height = LINE + sum(strip.height + GAP for strip in strips) + legend.height
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(("image", "truth", "prediction")):
        draw.text((column * (tile + GAP) + 2, 1), title, fill="black", font=_font())
    top = LINE
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height + GAP
    sheet.paste(legend, (0, top))
    return np.asarray(sheet)


def _strip(
    image: Pixels,
    truth: NDArray[np.integer] | None,
    prediction: NDArray[np.integer],
    palette: Sequence[Sequence[int]],
    tile: int,
) -> Image.Image:
    height = max(1, round(image.shape[0] * tile / image.shape[1]))
    strip = Image.new("RGB", (3 * tile + 2 * GAP, height), "white")
    strip.paste(Image.fromarray(image).resize((tile, height)), (0, 0))
    for column, labels in ((1, truth), (2, prediction)):
        if labels is None:
            continue
        painted = Image.fromarray(colourise(labels, palette))
        painted = painted.resize((tile, height), Image.Resampling.NEAREST)
        strip.paste(painted, (column * (tile + GAP), 0))
    return strip


def _legend(
    present: Sequence[int],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    width: int,
) -> Image.Image:
    font = _font()
    places, x, y = [], 0, 2
    for index in present:
        needed = LINE + 4 + int(font.getlength(str(classes[index]))) + 10
        if x and x + needed > width:
            x, y = 0, y + LINE + 2
        places.append((index, x, y))
        x += needed
    legend = Image.new("RGB", (width, y + LINE + 2), "white")
    draw = ImageDraw.Draw(legend)
    for index, x, y in places:
        colour = tuple(int(value) for value in palette[index])
        draw.rectangle((x + 2, y + 2, x + LINE - 3, y + LINE - 3), fill=colour, outline="black")
        draw.text((x + LINE + 2, y + 1), str(classes[index]), fill="black", font=font)
    return legend


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default()
