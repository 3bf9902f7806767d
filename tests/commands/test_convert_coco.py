"""COCO through the conversion tool: masks, errors, and that nothing is harmed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mmseg_eomt.datasets import load_data
from tests.commands.converting import Run, image, load_tool, mask_of, reads, state, write


@pytest.fixture(name="run")
def _run() -> Run:
    return load_tool()


@pytest.fixture(name="coco")
def _coco(tmp_path: Path) -> dict[str, Any]:
    image(tmp_path / "in" / "images" / "a.jpg")
    image(tmp_path / "in" / "images" / "deep" / "b.png", 12, 9)
    crowd = [20 * 10, 20 * 20]  # the right two thirds: columns from the tenth on
    return {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 30, "height": 20},
            {"id": 5, "file_name": "deep/b.png", "width": 12, "height": 9},
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 3,
                "segmentation": [[2, 2, 14, 2, 14, 10, 2, 10], [16, 12, 20, 12, 20, 16, 16, 16]],
            },
            {
                "id": 2,
                "image_id": 1,
                "category_id": 8,
                "segmentation": [[8, 4, 18, 4, 18, 8, 8, 8]],
            },
            {
                "id": 3,
                "image_id": 1,
                "category_id": 8,
                "iscrowd": 1,
                "segmentation": {"size": [20, 30], "counts": crowd},
            },
        ],
    }


def coco_mask(crowd_value: int, fill: int) -> NDArray[np.uint8]:
    mask = np.full((20, 30), fill, np.uint8)
    if crowd_value >= 0:
        mask[:, 10:] = crowd_value
    mask[2:10, 2:14] = 3
    mask[12:16, 16:20] = 3
    mask[4:8, 8:18] = 8
    return mask


@pytest.mark.parametrize(
    ("options", "crowd_value", "fill"),
    [
        ([], 8, 0),
        (["--crowd", "ignore"], 255, 0),
        (["--crowd", "skip", "--unlabelled", "ignore"], -1, 255),
    ],
)
def test_coco_later_on_top_and_crowds_below(
    run: Run, tmp_path: Path, coco: dict[str, Any], options: list[str], crowd_value: int, fill: int
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    path = write(source / "train.json", coco)
    before = state(source)
    assert run("coco", "--train", path, source / "images", "--out", out, *options) == 0
    assert np.array_equal(mask_of(out, "a"), coco_mask(crowd_value, fill))
    assert np.array_equal(mask_of(out, "deep/b"), np.full((9, 12), fill))
    assert state(source) == before
    data = load_data(out / "data.yaml")
    named = {entry.id: entry.name for entry in data.entries}
    assert named == {3: "cat", 8: "dog"} | ({0: "background"} if fill == 0 else {})
    assert len(reads(out)) == 2
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_coco_masks_are_those_of_pycocotools(run: Run, tmp_path: Path) -> None:
    tools = pytest.importorskip("pycocotools.coco")
    encode = pytest.importorskip("pycocotools.mask").encode
    rng = np.random.default_rng(0)
    image(tmp_path / "images" / "a.png", 40, 30)
    blobs = [np.kron(rng.random((6, 8)) < 0.4, np.ones((5, 5))).astype(np.uint8) for _ in range(3)]
    annotations = []
    for number, blob in enumerate(blobs, start=1):
        packed = encode(np.asfortranarray(blob))
        segmentation = {"size": [30, 40], "counts": packed["counts"].decode()}
        annotations.append(
            {"id": number, "image_id": 7, "category_id": number, "segmentation": segmentation}
        )
    path = write(
        tmp_path / "t.json",
        {
            "images": [{"id": 7, "file_name": "a.png", "width": 40, "height": 30}],
            "categories": [{"id": number, "name": f"c{number}"} for number in (1, 2, 3)],
            "annotations": annotations,
        },
    )
    assert run("coco", "--val", path, tmp_path / "images", "--out", tmp_path / "out") == 0
    reader = tools.COCO(str(path))
    wanted = np.zeros((30, 40), np.uint8)
    for annotation in reader.loadAnns(reader.getAnnIds(imgIds=7)):
        wanted[reader.annToMask(annotation) > 0] = annotation["category_id"]
    assert len(np.unique(wanted)) == 4
    assert np.array_equal(mask_of(tmp_path / "out", "a", "val"), wanted)


def test_coco_ids_beyond_bytes_are_numbered_anew_and_the_report_says_so(
    run: Run, tmp_path: Path, coco: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for entry in [*coco["categories"], *coco["annotations"]]:
        key = "category_id" if "category_id" in entry else "id"
        entry[key] = {3: 0, 8: 9000}[entry[key]]
    path = write(tmp_path / "in" / "t.json", coco)
    assert run("coco", "--train", path, tmp_path / "in/images", "--out", tmp_path / "out") == 0
    assert "numbered anew from 1" in capsys.readouterr().out
    wanted = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8], np.uint8)
    wanted[[3, 8]] = 1, 2
    assert np.array_equal(mask_of(tmp_path / "out", "a"), wanted[coco_mask(8, 0)])


def change(coco: dict[str, Any], where: tuple[Any, ...], value: Any) -> None:
    target: Any = coco
    for key in where[:-1]:
        target = target[key]
    target[where[-1]] = value


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("annotations", 0, "category_id"), 4, "annotation 1: category_id 4 is unknown"),
        (("annotations", 1, "image_id"), 2, "annotation 2: image_id 2 is no image"),
        (("annotations", 1, "segmentation"), [], "annotation 2: has no segmentation"),
        (("annotations", 1, "segmentation"), [[1, 2, 3]], "annotation 2: .* no list of pairs"),
        (("annotations", 1, "segmentation"), [[1, 2, 3, 4]], "annotation 2: .* 3 corners"),
        (("annotations", 2, "segmentation", "size"), [2, 3], "annotation 3: .* size"),
        (("images", 0, "file_name"), "c.jpg", "c.jpg does not exist"),
        (("images", 0, "file_name"), "../a.jpg", "must be a path below"),
        (("images", 0, "width"), 31, "says 31x20 .* the image is 30x20"),
        (("images", 1, "id"), 1, "id 1 is given to two images"),
        (("categories", 1, "name"), "cat", "given twice"),
        (("categories",), None, "no list 'categories'"),
    ],
)
def test_coco_errors_name_file_and_place_and_nothing_is_written(
    run: Run,
    tmp_path: Path,
    coco: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    where: tuple[Any, ...],
    value: Any,
    message: str,
) -> None:
    change(coco, where, value)
    path = write(tmp_path / "in" / "t.json", coco)
    before = state(tmp_path)
    assert run("coco", "--train", path, tmp_path / "in/images", "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "t.json" in said and re.search(message, said)
    assert state(tmp_path) == before and not (tmp_path / "out").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


def test_unannotated_images_are_left_out_by_links_and_reported(
    run: Run, tmp_path: Path, coco: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    image(tmp_path / "in/images/extra.jpg")
    path = write(tmp_path / "in" / "t.json", coco)
    out = tmp_path / "out"
    assert run("coco", "--train", path, tmp_path / "in/images", "--out", out) == 0
    assert "1 of 3 images" in capsys.readouterr().out
    assert (out / "train/images/a.jpg").is_symlink()
    assert len(reads(out)) == 2
    assert run("coco", "--train", path, tmp_path / "in/images", "--out", out) == 2
    assert "--force" in capsys.readouterr().err
    again = ("coco", "--train", path, tmp_path / "in/images", "--out", out, "--force")
    assert run(*again, "--copy-images") == 0
    assert not (out / "train/images/a.jpg").is_symlink()
    assert len(reads(out)) == 2


def test_foreign_folders_and_sources_are_never_written_over(
    run: Run, tmp_path: Path, coco: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "in" / "t.json", coco)
    images = tmp_path / "in" / "images"
    write(tmp_path / "mine" / "thesis.txt", "years of work")
    before = state(tmp_path)
    for out, message in (
        (tmp_path / "mine", "was not made by this tool"),
        (images, "which is read"),
        (images / "new", "which is read"),
        (tmp_path / "in", "which is read"),
    ):
        assert run("coco", "--train", path, images, "--out", out, "--force") == 2
        assert message in capsys.readouterr().err
        assert state(tmp_path) == before


def test_failed_replacement_leaves_the_old_result(
    run: Run, tmp_path: Path, coco: dict[str, Any]
) -> None:
    images, out = tmp_path / "in" / "images", tmp_path / "out"
    path = write(tmp_path / "in" / "t.json", coco)
    assert run("coco", "--train", path, images, "--out", out) == 0
    before = state(out)
    coco["annotations"][2]["segmentation"]["counts"] = [1]
    write(path, coco)
    assert run("coco", "--train", path, images, "--out", out, "--force") == 2
    assert state(out) == before
