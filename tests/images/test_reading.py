"""Files of every kind are read by the stated rules; damaged ones are named."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from mmseg_eomt.images.reading import image_size, read_image, read_mask

RNG = np.random.default_rng(0)
# Smooth, so that lossy formats stay close.
PICTURE = cv2.resize(RNG.integers(0, 256, (3, 4, 3), dtype=np.uint8), (24, 16))
LOSSY = (".jpg", ".JPEG", ".webp")


@pytest.mark.parametrize(
    "suffix", [".jpg", ".JPEG", ".png", ".bmp", ".tif", ".TIFF", ".webp", ".ppm"]
)
def test_every_format_reads_as_bgr(tmp_path: Path, suffix: str) -> None:
    path = str(tmp_path / f"x{suffix}")
    Image.fromarray(PICTURE).save(path)
    image = read_image(path)
    assert image.dtype == np.uint8 and image.shape == (16, 24, 3)
    assert image_size(path) == (24, 16)
    tolerance = 12 if suffix in LOSSY else 0
    assert np.abs(image[..., ::-1].astype(int) - PICTURE).mean() <= tolerance


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = str(tmp_path / f"x{suffix}")
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(PICTURE).save(path, exif=exif, **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    image = read_image(path)[..., ::-1]
    assert image.shape == expected.shape
    assert image_size(path) == (image.shape[1], image.shape[0])
    assert np.abs(image.astype(int) - expected).max() <= (3 if suffix == ".jpg" else 0)


@pytest.mark.parametrize("min_pixels, divisor", [(None, 1), (1537, 1), (1536, 2), (384, 4), (1, 8)])
def test_large_jpegs_are_decoded_small_where_so_many_pixels_suffice(
    tmp_path: Path, min_pixels: int | None, divisor: int
) -> None:
    path = str(tmp_path / "x.jpg")
    picture = Image.fromarray(PICTURE).resize((96, 64), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture.save(path, exif=exif, quality=95)
    whole = ImageOps.exif_transpose(Image.open(path))
    image = read_image(path, min_pixels=min_pixels)[..., ::-1]
    assert image.shape == (96 // divisor, 64 // divisor, 3)
    expected = np.asarray(whole.resize(image.shape[1::-1], Image.Resampling.BOX))
    assert np.abs(image.astype(int) - expected).mean() < 2


def test_other_files_are_read_whole_however_few_pixels_suffice(tmp_path: Path) -> None:
    path = str(tmp_path / "x.png")
    Image.fromarray(PICTURE).save(path)
    assert np.array_equal(read_image(path, min_pixels=1)[..., ::-1], PICTURE)


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P", "1"])
def test_other_modes_become_three_channels(tmp_path: Path, mode: str) -> None:
    path = str(tmp_path / "x.png")
    picture = Image.fromarray(PICTURE).convert(mode)
    if mode in ("RGBA", "LA"):
        picture.putalpha(7)
    picture.save(path)
    expected = np.asarray(picture.convert("RGB"))
    assert np.array_equal(read_image(path)[..., ::-1], expected)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_images_keep_the_high_byte(tmp_path: Path, suffix: str, channels: int) -> None:
    path = str(tmp_path / f"x{suffix}")
    picture = RNG.integers(0, 65536, (5, 6, channels), dtype=np.uint16)
    cv2.imwrite(path, picture)
    expected = np.repeat(picture, 3 // channels, axis=2) >> 8
    assert np.array_equal(read_image(path), expected)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp", ".bmp", ".ppm"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.97])
def test_truncated_image_is_named(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"x{suffix}"
    buffer = io.BytesIO()
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(buffer, Image.registered_extensions()[suffix])
    path.write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * kept)])
    with pytest.raises(ValueError, match=rf"x\{suffix}: "):
        read_image(str(path))


def test_text_with_an_image_suffix_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_text("no image")
    with pytest.raises(ValueError, match=r"x\.jpg: unreadable"):
        read_image(str(path))
    with pytest.raises(ValueError, match=r"x\.jpg: unreadable"):
        image_size(str(path))


def _grey_png(values: np.ndarray, bits: int) -> bytes:
    """A grey PNG of 1, 2, 4, 8 or 16 bits, written by hand: Pillow writes only some."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b""
    for row in values:
        text = "".join(f"{int(value):0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        rows += b"\0" + bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_masks_of_any_depth_read_as_stored(tmp_path: Path, bits: int) -> None:
    values = RNG.integers(0, 2**bits, (5, 7))
    path = tmp_path / "m.png"
    path.write_bytes(_grey_png(values, bits))
    mask = read_mask(str(path))
    assert mask.dtype == (np.uint16 if bits == 16 else np.uint8)
    assert np.array_equal(mask, values)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_masks_read_as_indices(tmp_path: Path, bits: int) -> None:
    values = RNG.integers(0, 2**bits, (5, 7), dtype=np.uint8)
    picture = Image.fromarray(values)
    picture.putpalette(RNG.integers(0, 256, 3 * 2**bits, dtype=np.uint8).tobytes())
    picture.save(tmp_path / "m.png", bits=bits)
    assert np.array_equal(read_mask(str(tmp_path / "m.png")), values)


def test_jpeg_renamed_to_png_is_no_mask(tmp_path: Path) -> None:
    Image.fromarray(PICTURE[..., 0]).save(tmp_path / "m.png", format="JPEG")
    with pytest.raises(ValueError, match=r"m\.png: not readable as a PNG mask"):
        read_mask(str(tmp_path / "m.png"))


def test_truncated_mask_is_named(tmp_path: Path) -> None:
    content = _grey_png(RNG.integers(0, 256, (40, 40)), 8)
    (tmp_path / "m.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"m\.png: not readable as a PNG mask"):
        read_mask(str(tmp_path / "m.png"))
