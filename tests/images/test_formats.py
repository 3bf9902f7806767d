"""Images of any number of bands, TIFF and colour masks: by Pillow, OpenCV and tifffile."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from mmseg_eomt.errors import BadFileError
from mmseg_eomt.images.reading import as_rgb, image_size, read_image, read_mask

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("layout", ["contig", "separate", "pages"])
@pytest.mark.parametrize("bands", [2, 4, 5, 12])
def test_tiff_bands_read_as_stored(
    tmp_path: Path, dtype: type[np.generic], layout: str, bands: int
) -> None:
    path = str(tmp_path / "x.tif")
    values = RNG.integers(0, np.iinfo(dtype).max + 1, (5, 7, bands), dtype=dtype)
    stored = values if layout == "contig" else values.transpose(2, 0, 1)
    options = {} if layout == "pages" else {"planarconfig": layout}
    tifffile.imwrite(path, stored, photometric="minisblack", compression="deflate", **options)
    assert image_size(path) == (7, 5)
    expected = values if dtype == np.uint8 else values >> 8
    assert np.array_equal(read_image(path, channels=bands), expected)
    with pytest.raises(BadFileError, match=rf"x\.tif: the image has {bands} channels, .* takes 9"):
        read_image(path, channels=9)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("layout", ["contig", "separate"])
@pytest.mark.parametrize("photometric", ["rgb", "minisblack"])
def test_tiffs_of_three_bands_read_as_bgr(
    tmp_path: Path, dtype: type[np.generic], layout: str, photometric: str
) -> None:
    path = str(tmp_path / "x.tif")
    values = RNG.integers(0, np.iinfo(dtype).max + 1, (5, 7, 3), dtype=dtype)
    stored = values if layout == "contig" else values.transpose(2, 0, 1)
    tifffile.imwrite(path, stored, photometric=photometric, planarconfig=layout)
    expected = values if dtype == np.uint8 else values >> 8
    assert np.array_equal(read_image(path)[..., ::-1], expected)


def test_four_bands_for_a_model_of_three_name_in_channels(tmp_path: Path) -> None:
    path = str(tmp_path / "x.tif")
    values = np.zeros((5, 7, 4), np.uint8)
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig")
    with pytest.raises(BadFileError, match=r"has 4 channels, the model takes 3 .*in_channels"):
        read_image(path)


def test_float_bands_are_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "x.tif")
    tifffile.imwrite(path, np.zeros((5, 7, 4), np.float32), planarconfig="contig")
    for channels in (3, 4):
        with pytest.raises(BadFileError, match=r"x\.tif: the image holds float32; allowed are 8"):
            read_image(path, channels=channels)


def test_truncated_tiff_of_bands_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    values = RNG.integers(0, 256, (50, 70, 4), dtype=np.uint8)
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(BadFileError, match=r"x\.tif: "):
        read_image(str(path), channels=4)


def test_tiff_orientation_turns_bands(tmp_path: Path) -> None:
    path = str(tmp_path / "x.tif")
    values = RNG.integers(0, 256, (5, 7, 5), dtype=np.uint8)
    tifffile.imwrite(
        path,
        values,
        photometric="minisblack",
        planarconfig="contig",
        extratags=[(274, "H", 1, 6, True)],
    )
    assert image_size(path) == (5, 7)
    assert np.array_equal(read_image(path, channels=5), np.rot90(values, -1))


def test_png_with_alpha_has_four_bands_in_rgba_order(tmp_path: Path) -> None:
    path = str(tmp_path / "x.png")
    values = RNG.integers(0, 256, (5, 7, 4), dtype=np.uint8)
    Image.fromarray(values).save(path)
    assert np.array_equal(read_image(path, channels=4), values)
    assert np.array_equal(read_image(path)[..., ::-1], values[..., :3])


def test_grey_files_fit_one_channel_and_no_four(tmp_path: Path) -> None:
    path = str(tmp_path / "x.png")
    values = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
    cv2.imwrite(path, values)
    assert np.array_equal(read_image(path, channels=1)[..., 0], values >> 8)
    with pytest.raises(BadFileError, match=r"has 1 channels, the model takes 4"):
        read_image(path, channels=4)


def test_pictures_of_bands_show_three_of_them() -> None:
    bands = RNG.integers(0, 256, (2, 3, 5), dtype=np.uint8)
    assert np.array_equal(as_rgb(bands), bands[..., :3])
    assert np.array_equal(as_rgb(bands[..., :3]), bands[..., 2::-1])
    assert np.array_equal(as_rgb(bands[..., :2]), np.repeat(bands[..., :1], 3, axis=2))


@pytest.mark.parametrize(
    ("dtype", "byteorder"),
    # Pillow, which reads masks, does not know big-endian uint32; its error says so.
    [
        (dtype, order)
        for dtype in (np.uint8, np.uint16, np.int32, np.uint32, np.int16)
        for order in "<>"
        if (dtype, order) != (np.uint32, ">")
    ],
)
def test_tiff_masks_read_as_stored(tmp_path: Path, dtype: type[np.generic], byteorder: str) -> None:
    path = str(tmp_path / "m.tif")
    values = RNG.integers(0, 255 if dtype == np.uint8 else 32000, (5, 7)).astype(dtype)
    tifffile.imwrite(path, values, byteorder=byteorder)
    mask = read_mask(path)
    assert mask.dtype == (np.uint8 if dtype == np.uint8 else np.uint16)
    assert np.array_equal(mask, values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((2, 3), 70000, np.int32), r"holds int32 from 70000 to 70000; .* 0 to 65535"),
        (np.full((2, 3), -1, np.int32), r"from -1 to -1"),
        (np.full((2, 3), 0.5, np.float32), r"holds float32 from 0\.5"),
        (np.zeros((4, 2, 3), np.uint8), r"has 4 pages, a mask has one"),
    ],
)
def test_tiff_mask_that_holds_no_class_ids(
    tmp_path: Path, values: np.ndarray, message: str
) -> None:
    path = str(tmp_path / "m.tif")
    tifffile.imwrite(path, values, photometric="minisblack")
    with pytest.raises(BadFileError, match=rf"m\.tif: .*{message}"):
        read_mask(path)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colour_masks_read_as_rgb(tmp_path: Path, suffix: str, mode: str) -> None:
    values = RNG.integers(0, 256, (5, 7, len(mode)), dtype=np.uint8)
    path = str(tmp_path / f"m{suffix}")
    Image.fromarray(values).save(path)
    assert np.array_equal(read_mask(path), values[..., :3])


def test_colour_mask_of_sixteen_bits_is_refused(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "m.png"), np.zeros((5, 7, 3), np.uint16))
    with pytest.raises(BadFileError, match=r"m\.png: the mask has 3 channels \(mode RGB, 16 bits"):
        read_mask(str(tmp_path / "m.png"))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_orientation_of_a_mask_is_applied(tmp_path: Path, suffix: str) -> None:
    values = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = str(tmp_path / f"m{suffix}")
    Image.fromarray(values).save(path, exif=exif)
    assert image_size(path) == (5, 7)
    assert np.array_equal(read_mask(path), np.rot90(values, -1))
