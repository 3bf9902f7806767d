"""A catalogue of broken datasets: each fault is found by name, and nothing is written."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image

from mmseg_eomt.datasets.check import DatasetReport, check_dataset, html_report, text_report

WIDTH, HEIGHT = 48, 40
Break = Callable[[Path, dict[str, Any]], Any]


def photo(seed: int) -> NDArray[np.uint8]:
    """A smooth picture with noise, ``[H, W, 3]``."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    noise = rng.integers(-8, 9, picture.shape)
    return np.clip(picture.astype(int) + noise, 0, 255).astype(np.uint8)


def label(seed: int, classes: int = 3) -> NDArray[np.uint8]:
    """A mask of blocks that holds every class."""
    rng = np.random.default_rng(1000 + seed)
    blocks = rng.permutation(np.arange(30) % classes).reshape(5, 6).astype(np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)


def masks(root: Path, split: str = "*") -> list[Path]:
    """All masks of a dataset."""
    return sorted(root.glob(f"{split}/masks/*.png"))


def images(root: Path, split: str = "*") -> list[Path]:
    """All images of a dataset."""
    return sorted(root.glob(f"{split}/images/*"))


@pytest.fixture(name="root")
def _root(tmp_path: Path) -> Path:
    """A sound dataset of 6 + 3 pairs and three classes."""
    number = 0
    for split, count in (("train", 6), ("val", 3)):
        for folder in ("images", "masks"):
            (tmp_path / "d" / split / folder).mkdir(parents=True)
        for _ in range(count):
            place, stem = tmp_path / "d" / split, f"p{number}"
            Image.fromarray(photo(number)).save(place / "images" / f"{stem}.jpg", quality=95)
            Image.fromarray(label(number)).save(place / "masks" / f"{stem}.png")
            number += 1
    return tmp_path / "d"


def describe() -> dict[str, Any]:
    """The description of the sound dataset."""
    splits: dict[str, Any] = {
        split: {"images": f"{split}/images", "masks": f"{split}/masks"}
        for split in ("train", "val")
    }
    return splits | {"classes": {0: "sky", 1: "road", 2: "car"}}


def check(root: Path, data: dict[str, Any]) -> DatasetReport:
    """Checks and makes sure that not a byte below ``root`` changed."""
    path = root / "data.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    before = snapshot(root)
    report = check_dataset(path, workers=2)
    assert snapshot(root) == before
    return report


def snapshot(root: Path) -> dict[str, Any]:
    """Content and times of everything below a folder."""
    state: dict[str, Any] = {}
    for parent, folders, names in os.walk(root):
        for name in [*folders, *names]:
            path = Path(parent) / name
            stat = path.lstat()
            content = path.read_bytes() if path.is_file() and os.access(path, os.R_OK) else b""
            state[str(path)] = (stat.st_mtime_ns, stat.st_mode, hashlib.sha256(content).hexdigest())
    return state


def remap(
    root: Path, change: Callable[[NDArray[np.uint8]], NDArray[Any]], split: str = "*"
) -> None:
    """Changes every mask."""
    for path in masks(root, split):
        Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


def two(data: dict[str, Any]) -> None:
    """Two classes only."""
    data["classes"] = {0: "background", 1: "crack"}


def cut(path: Path, share: float = 0.6) -> None:
    """Cuts a file off."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def put(path: Path, array: NDArray[Any], **options: Any) -> None:
    """Writes an array in place of a file."""
    Image.fromarray(array).save(path, **options)


def png_of(root: Path) -> Path:
    """The first training image as PNG."""
    path = images(root)[0]
    Image.open(path).save(path.with_suffix(".png"))
    path.unlink()
    return path.with_suffix(".png")


def smooth(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Resized with interpolation, as programs do that know of no masks."""
    small = Image.fromarray(mask).resize((WIDTH * 2, HEIGHT * 2), Image.Resampling.BICUBIC)
    return np.asarray(small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def colored(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """As RGB colours."""
    return np.array([[0, 0, 0], [128, 64, 128], [0, 0, 142]], np.uint8)[mask]


def swap_folders(root: Path, data: dict[str, Any]) -> None:
    """Images and masks exchanged, both PNG."""
    for path in images(root):
        Image.open(path).save(path.with_suffix(".png"))
        path.unlink()
    for split in ("train", "val"):
        pair = data[split]
        pair["images"], pair["masks"] = pair["masks"], pair["images"]


def mask_from_image(root: Path, data: dict[str, Any]) -> None:
    """The grey picture as its own mask."""
    for image, mask in zip(images(root), masks(root), strict=True):
        Image.open(image).convert("L").save(mask)


def jpeg_masks(root: Path, data: dict[str, Any]) -> None:
    """Masks went through JPEG and came back as PNG."""
    data["classes"] = {0: "a", 60: "b", 120: "c"}
    for path in masks(root):
        jpeg = path.with_suffix(".jpg")
        # Blocks must not coincide with those of JPEG.
        mask = np.roll(np.asarray(Image.open(path)), (3, 3), (0, 1)) * np.uint8(60)
        Image.fromarray(mask).save(jpeg, quality=90)
        Image.open(jpeg).save(path)
        jpeg.unlink()


def rotate_exif(root: Path, data: dict[str, Any]) -> None:
    """A phone picture: turned by EXIF, its mask drawn on the stored pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    put(images(root)[0], photo(0), exif=exif)


def remove_class(root: Path, data: dict[str, Any]) -> None:
    """A class in no mask."""
    data["classes"][7] = "boat"


def only_in_val(root: Path, data: dict[str, Any]) -> None:
    """A class that training never sees."""
    data["classes"][3] = "boat"
    mask = label(1)
    mask[:4] = 3
    put(masks(root, "val")[0], mask)


def leak(root: Path, data: dict[str, Any]) -> None:
    """A training pair in val under another name and format."""
    image = images(root, "train")[2]
    Image.open(image).save(root / "val/images/other.png")
    shutil.copy(masks(root, "train")[2], root / "val/masks/other.png")


def duplicate(root: Path, data: dict[str, Any]) -> None:
    """A training pair twice."""
    shutil.copy(images(root)[0], root / "train/images/again.jpg")
    shutil.copy(masks(root)[0], root / "train/masks/again.png")


def contradict(root: Path, data: dict[str, Any]) -> None:
    """An image twice with unlike masks."""
    shutil.copy(images(root)[0], root / "train/images/again.jpg")
    shutil.copy(masks(root)[1], root / "train/masks/again.png")


def two_stems(root: Path, data: dict[str, Any]) -> None:
    """p0.jpg and p0.png, one mask."""
    put(root / "train/images/p0.bmp", photo(77))


def rename_masks(root: Path, suffix: str) -> None:
    """Adds to the stems of masks."""
    for path in masks(root):
        path.rename(path.with_name(path.stem + suffix + ".png"))


def nest_images(root: Path, data: dict[str, Any]) -> None:
    """Images in sub-folders, masks not."""
    (root / "train/images/monday").mkdir()
    for path in images(root, "train"):
        if path.is_file():
            path.rename(path.parent / "monday" / path.name)


def masks_as_jpeg(root: Path, data: dict[str, Any]) -> None:
    """JPEG masks with their own suffix."""
    for path in masks(root, "train"):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()


def broken_link(root: Path, data: dict[str, Any]) -> None:
    """A link whose target was moved."""
    path = images(root)[0]
    path.unlink()
    path.symlink_to("/nowhere/p0.jpg")


def sixteen(factor: int) -> Callable[[NDArray[np.uint8]], NDArray[Any]]:
    """A change of masks to 16 bits."""
    return lambda mask: mask.astype(np.uint16) * np.uint16(factor)


def value_at(value: int) -> Callable[[NDArray[np.uint8]], NDArray[Any]]:
    """A change of masks that sets a corner."""

    def change(mask: NDArray[np.uint8]) -> NDArray[Any]:
        mask = mask.astype(np.uint16 if value > 255 else np.uint8)
        mask[:2, :3] = value
        return mask

    return change


def edit(**changes: Any) -> Break:
    """A fault of the description."""

    def change(root: Path, data: dict[str, Any]) -> None:
        data.update(changes)

    return change


FAULTS: list[tuple[str, Break, int, str, str]] = [
    # name, what is broken, exit code, code of the finding, words of the report
    ("image without mask", lambda r, d: masks(r)[0].unlink(), 2, "image_without_mask", "p0.jpg"),
    ("mask without image", lambda r, d: images(r)[1].unlink(), 2, "mask_without_image", "p1.png"),
    ("suffix in mask names", lambda r, d: rename_masks(r, "_mask"), 2, "image_without_mask",
     "'_mask'"),
    ("case of names", lambda r, d: masks(r)[0].rename(r / "train/masks/P0.png"), 2,
     "image_without_mask", "differ in case"),
    ("space in a name", lambda r, d: masks(r)[0].rename(r / "train/masks/p0 .png"), 2,
     "image_without_mask", "space"),
    ("nested images", nest_images, 2, "image_without_mask", "nested differently"),
    ("two images of a stem", two_stems, 2, "ambiguous_stem", "p0.bmp"),
    ("masks saved as .jpg", masks_as_jpeg, 2, "image_without_mask", "6 files with .jpg"),
    ("no images", lambda r, d: [p.unlink() for p in images(r, "train")], 2, "empty_folder",
     "train/images holds no images"),
    ("images of a wrong kind", lambda r, d: [p.rename(p.with_suffix(".gif")) for p in
     images(r, "train")], 2, "empty_folder", "6 files with .gif"),
    ("folder missing", lambda r, d: shutil.rmtree(r / "val/masks"), 2, "missing_folder",
     "val/masks does not exist"),
    ("folder is a file", edit(val={"images": "data.yaml", "masks": "val/masks"}), 2,
     "missing_folder", "is a file"),
    ("empty image file", lambda r, d: images(r)[0].write_bytes(b""), 2, "empty_image_file",
     "p0.jpg"),
    ("empty mask file", lambda r, d: masks(r)[0].write_bytes(b""), 2, "empty_mask_file", "p0.png"),
    ("truncated JPEG", lambda r, d: cut(images(r)[0]), 2, "truncated_image", "p0.jpg: cut off"),
    ("truncated PNG image", lambda r, d: cut(png_of(r)), 2, "truncated_image", "p0.png: cut off"),
    ("truncated mask", lambda r, d: cut(masks(r)[0]), 2, "truncated_mask", "p0.png: cut off"),
    ("image of zero bytes", lambda r, d: images(r)[0].write_bytes(b"\0" * 500), 2,
     "unreadable_image", "500 zero bytes"),
    ("image is an HTML page", lambda r, d: images(r)[0].write_text("<!DOCTYPE html><p>404"), 2,
     "unreadable_image", "an HTML page"),
    ("image is a Git LFS pointer", lambda r, d: images(r)[0].write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"), 2,
     "unreadable_image", "git lfs pull"),
    ("image is text", lambda r, d: images(r)[0].write_text("hello"), 2, "unreadable_image",
     "p0.jpg"),
    ("mask is text", lambda r, d: masks(r)[0].write_text("hello"), 2, "unreadable_mask", "p0.png"),
    ("broken link", broken_link, 2, "unreadable_image", "a link to /nowhere/p0.jpg"),
    ("JPEG named .png", lambda r, d: put(masks(r)[0], label(0), format="JPEG"), 2, "jpeg_mask",
     "JPEG"),
    ("mask of another format", lambda r, d: put(masks(r)[0], label(0), format="GIF"), 2,
     "unreadable_mask", "is GIF"),
    ("float image", lambda r, d: (images(r)[0].unlink(), put(r / "train/images/p0.tif",
     photo(0)[..., 0].astype(np.float32))), 2, "unreadable_image", "float"),
    ("RGB mask", lambda r, d: put(masks(r)[0], colored(label(0))), 2, "mask_mode", "p0.png"),
    ("mask with alpha", lambda r, d: Image.fromarray(label(0)).convert("LA").save(masks(r)[0]), 2,
     "mask_mode", "LA"),
    ("size differs", lambda r, d: put(masks(r)[0], label(0)[:20]), 2, "size_mismatch",
     "mask 48x20, image 48x40"),
    ("mask half the size", lambda r, d: put(masks(r)[0], label(0)[::2, ::2]), 2, "size_mismatch",
     "resized?"),
    ("transposed mask", lambda r, d: put(masks(r)[0], np.ascontiguousarray(label(0).T)), 2,
     "size_mismatch", "exchanged"),
    ("EXIF turns the image only", rotate_exif, 2, "size_mismatch", "EXIF"),
    ("an unknown value", lambda r, d: put(masks(r)[0], value_at(77)(label(0))), 2,
     "unknown_value", "p0.png: 77 (6 pixels)"),
    ("an unknown 16-bit value", lambda r, d: put(masks(r)[0], value_at(4000)(label(0))), 2,
     "unknown_value", "4000 (6 pixels)"),
    ("ids from 1", lambda r, d: remap(r, lambda m: m + np.uint8(1)), 2, "guess_off_by_one",
     "values 1..3, but the classes are 0..2: off by one"),
    ("classes from 1, ids from 0", edit(classes={1: "sky", 2: "road", 3: "car"}), 2,
     "guess_off_by_one", "off by one, ids that start at 0"),
    ("0 is unlabelled", lambda r, d: remap(r, lambda m: _with_zero(m)), 2,
     "guess_zero_unlabelled", "Does 0 mean 'unlabelled'"),
    ("scaled to 0 and 255", lambda r, d: (two(d), remap(r, lambda m: (m > 0) * np.uint8(255))), 2,
     "guess_scaled", "0 and 255"),
    ("scaled to 0, 127, 254", lambda r, d: remap(r, lambda m: m * np.uint8(127)), 2,
     "guess_scaled", "multiplied by 127"),
    ("scaled by 50", lambda r, d: remap(r, lambda m: m * np.uint8(50)), 2, "guess_scaled",
     "multiplied by 50"),
    ("8 bits stretched to 16", lambda r, d: remap(r, sixteen(257)), 2, "guess_scaled",
     "multiplied by 257"),
    ("inverted", lambda r, d: remap(r, lambda m: np.uint8(255) - m), 2, "guess_inverted",
     "inverted"),
    ("mask is the image", mask_from_image, 2, "guess_mask_is_image", "copies of the images"),
    ("folders exchanged", swap_folders, 2, "guess_swapped", "exchanged"),
    ("masks through JPEG", jpeg_masks, 2, "guess_smoothed", "smooth edges"),
    ("masks resized smoothly", lambda r, d: (remap(r, lambda m: smooth(m * np.uint8(60))),
     d.update(classes={0: "a", 60: "b", 120: "c"})), 2, "guess_smoothed", "nearest"),
    ("background not listed", edit(classes={1: "road", 2: "car"}), 2, "guess_unlisted",
     "'0: background'"),
    ("255 not in ignore_index", lambda r, d: (d.update(ignore_index=[]), remap(r, value_at(255))),
     2, "guess_unlisted", "ignore_index: [255]"),
    ("16-bit unlabelled", lambda r, d: remap(r, value_at(65535)), 2, "guess_unlisted",
     "ignore_index: [65535]"),
    ("a mask without labels", lambda r, d: put(masks(r)[0], label(0) * 0 + np.uint8(255)), 1,
     "no_labelled_pixel", "p0.png"),
    ("all masks empty", lambda r, d: remap(r, lambda m: m * np.uint8(0)), 1, "guess_one_value",
     "nothing else"),
    ("nearly all unlabelled", lambda r, d: remap(r, lambda m: _one_row(m)), 1, "mostly_unlabelled",
     "97.5% of all pixels"),
    ("class never seen", remove_class, 1, "class_never_seen", "7 (boat)"),
    ("class in val only", only_in_val, 1, "class_not_in_train", "3 (boat)"),
    ("leakage", leak, 1, "leakage", "other.png: is "),
    ("val is train", edit(val={"images": "train/images", "masks": "train/masks"}), 1, "leakage",
     "6 images of val"),
    ("duplicate", duplicate, 1, "duplicate_image", "p0.jpg: is "),
    ("one image, two masks", contradict, 1, "contradicting_masks", "with another mask"),
    ("mask copied", lambda r, d: shutil.copy(masks(r)[0], masks(r)[1]), 1, "duplicate_mask",
     "p1.png: is "),
    ("thumbnails", lambda r, d: (put(images(r)[0], photo(0)[:20, :20]), put(masks(r)[0],
     label(0)[:20, :20])), 1, "tiny_image", "20x20"),
    ("no val", lambda r, d: d.pop("val"), 0, "no_split", "no val split"),
    ("unknown key", edit(clases={}), 2, "description", "unknown key 'clases'"),
    ("no classes", lambda r, d: d.pop("classes"), 2, "description", "at least one class"),
    ("a class twice", edit(classes={0: "sky", 1: "sky", 2: "car"}), 2, "description", "'sky'"),
    ("a value of two classes", edit(classes={0: "a", 1: {"name": "b", "labels": [0, 1]}}), 2,
     "description", "mask value 0"),
    ("no split", lambda r, d: (d.pop("train"), d.pop("val")), 2, "description", "none of the"),
]  # fmt: skip


def _with_zero(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Ids from 1, and a stripe of 0 that nobody labelled."""
    mask = mask + np.uint8(1)
    mask[:4] = 0
    return mask


def _one_row(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    result = np.full_like(mask, 255)
    result[0] = np.resize([0, 1, 2], WIDTH)
    return np.roll(result, int(mask[0].sum()), axis=1)


@pytest.mark.parametrize(
    ("broken", "exit_code", "code", "words"),
    [fault[1:] for fault in FAULTS],
    ids=[fault[0] for fault in FAULTS],
)
def test_fault_is_found_by_name_and_nothing_is_written(
    root: Path, broken: Break, exit_code: int, code: str, words: str
) -> None:
    data = describe()
    broken(root, data)
    report = check(root, data)
    text = text_report(report)
    assert report.exit_code == exit_code, text
    assert code in {finding.code for finding in report.findings}, text
    assert words in text
    as_dict = report.as_dict()
    assert as_dict["exit_code"] == exit_code


def test_bands_masks_by_colour_and_templates_are_sound(root: Path) -> None:
    data = describe()
    for split in ("train", "val"):
        for number, path in enumerate(images(root, split)):
            bands = np.dstack([photo(number + len(split)), label(number)])
            Image.fromarray(bands, "RGBA").save(path.with_suffix(".png"))
            path.unlink()
        data[split]["masks"] = f"{split}/masks/{{stem}}_label.png"
    remap(root, colored)
    rename_masks(root, "_label")
    colors = ([0, 0, 0], [128, 64, 128], [0, 0, 142])
    names = ("sky", "road", "car")
    data["classes"] = {
        i: {"name": name, "labels": [color]}
        for i, (name, color) in enumerate(zip(names, colors, strict=True))
    }
    path = root / "data.yaml"
    path.write_text(yaml.safe_dump(data))
    report = check_dataset(path, in_channels=4)
    assert report.findings == []
    assert report.splits["train"].class_images == [6, 6, 6]
    page = html_report(report, path)
    assert page.count("<img") == 2 * 9
    wrong = check_dataset(path, in_channels=5)
    assert {finding.code for finding in wrong.findings} == {"unreadable_image"}
    assert "the model takes 5" in wrong.findings[0].files[0].detail


def test_sound_dataset_has_no_finding(root: Path) -> None:
    report = check(root, describe())
    assert report.findings == []
    assert report.exit_code == 0
    train = report.splits["train"]
    expected = np.bincount(np.concatenate([label(i).ravel() for i in range(6)])).tolist()
    assert train.class_pixels == expected
    assert train.class_images == [6, 6, 6]
    assert train.sizes == {(WIDTH, HEIGHT): 6}
