"""labelme, colour masks, CVAT and Label Studio through the conversion tool."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mmseg_eomt.datasets import load_data
from tests.commands.converting import Run, image, load_tool, mask_of, png, reads, write


@pytest.fixture(name="run")
def _run() -> Run:
    return load_tool()


def test_labelme_shapes(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    image(folder / "a.jpg", 60, 50)
    patch = np.zeros((4, 6), np.uint8)
    patch[1:, 2:] = 255
    buffer = io.BytesIO()
    Image.fromarray(patch).save(buffer, "PNG")
    shapes: list[dict[str, Any]] = [
        {"label": "b", "shape_type": "rectangle", "points": [[40, 30], [10, 5]]},
        {"label": "a", "shape_type": "circle", "points": [[30, 25], [30, 33]]},
        {"label": "b", "points": [[0, 40], [20, 40], [20, 50], [0, 50]]},
        {"label": "__ignore__", "shape_type": "polygon", "points": [[50, 0], [60, 0], [60, 9]]},
        {
            "label": "a",
            "shape_type": "mask",
            "points": [[50, 40], [55, 43]],
            "mask": base64.b64encode(buffer.getvalue()).decode(),
        },
    ]
    write(folder / "a.json", {"shapes": shapes, "imagePath": "a.jpg"})
    assert run("labelme", "--train", folder, folder, "--out", tmp_path / "out") == 0
    mask = mask_of(tmp_path / "out", "a")
    wanted = Image.new("L", (60, 50))
    pen = ImageDraw.Draw(wanted)
    pen.rectangle((10, 5, 39, 29), fill=2)
    pen.ellipse((22, 17, 37, 32), fill=1)
    pen.rectangle((0, 40, 19, 49), fill=2)
    drawn = np.array(wanted)
    drawn[40:44, 50:56][patch > 0] = 1
    rest = np.ones((50, 60), bool)
    rest[:9, 50:] = False
    assert ((mask != drawn) & rest).sum() <= 8  # Pillow's circle differs at its rim
    assert np.array_equal(np.unique(mask), [0, 1, 2, 255])
    assert abs(int((mask == 255).sum()) - 45) <= 5
    assert load_data(tmp_path / "out/data.yaml").classes == ["background", "a", "b"]
    assert len(reads(tmp_path / "out")) == 1


def test_labelme_label_file_and_errors(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    image(folder / "a.jpg")
    square = {"label": "car", "points": [[1, 1], [5, 1], [5, 5], [1, 5]]}
    line = {"label": "lane", "shape_type": "line", "points": [[1, 1], [5, 1]]}
    write(folder / "a.json", {"shapes": [square, line]})
    labels = write(tmp_path / "labels.txt", "__ignore__\n_background_\nroad\ncar\n")
    base = ("labelme", "--train", folder, folder, "--out", tmp_path / "out")
    assert run(*base, "--labels", labels) == 2
    assert "labels.txt: does not list lane" in capsys.readouterr().err
    assert run(*base) == 2
    said = capsys.readouterr().err
    assert "a.json: shapes[1] (lane): the shape is a line" in said and "--skip-shapes" in said
    assert run(*base, "--labels", labels, "--skip-shapes", "--ignore-classes", "lane") == 2
    assert "no class 'lane'; classes are background, road, car" in capsys.readouterr().err
    assert run(*base, "--labels", labels, "--skip-shapes", "--ignore-classes", "road") == 0
    assert "1 points and lines are left out" in capsys.readouterr().out
    assert set(np.unique(mask_of(tmp_path / "out", "a"))) == {0, 2}
    assert load_data(tmp_path / "out/data.yaml").class_ids == [0, 2]
    write(folder / "lost.json", {"shapes": []})
    assert run(*base, "--force", "--skip-shapes") == 2
    assert "there is no image lost.*" in capsys.readouterr().err


PAINT = {"sky": (128, 128, 128), "road": (128, 64, 128), "car": (64, 0, 128)}


@pytest.mark.parametrize("form", ["labelmap.txt", "names.txt", "table.csv", "t.yaml", "t.json"])
def test_colour_masks_by_every_form_of_table(run: Run, tmp_path: Path, form: str) -> None:
    ids = np.random.default_rng(2).integers(0, 3, (20, 30))
    colors = np.array(list(PAINT.values()), np.uint8)[ids]
    image(tmp_path / "images/x/a.jpg")
    png(tmp_path / "masks/x/a_L.png", colors)
    rows = [(name, *color) for name, color in PAINT.items()]
    text = {
        "labelmap.txt": "# label:color_rgb:parts:actions\n"
        + "".join(f"{n}:{r},{g},{b}::\n" for n, r, g, b in rows),
        "names.txt": "".join(f"{r} {g} {b}\t\t{n}\n" for n, r, g, b in rows),
        "table.csv": "name,r,g,b\n" + "".join(f"{n},{r},{g},{b}\n" for n, r, g, b in rows),
        "t.yaml": "".join(f"{n}: [{r}, {g}, {b}]\n" for n, r, g, b in rows),
        "t.json": json.dumps({n: c for n, *c in rows}),
    }[form]
    table = write(tmp_path / form, text)
    out = tmp_path / "out"
    source = ("--train", tmp_path / "masks", tmp_path / "images")
    assert run("colors", *source, "--colors", table, "--mask-suffix", "_L", "--out", out) == 0
    assert np.array_equal(mask_of(out, "x/a"), ids)
    data = load_data(out / "data.yaml")
    assert data.classes == list(PAINT)
    assert data.palette == [list(color) for color in PAINT.values()]
    assert len(reads(out)) == 1


def test_unknown_colours_are_named_or_ignored(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colors = np.zeros((20, 30, 3), np.uint8)
    colors[:, 20:] = PAINT["car"]
    colors[3, 25] = (9, 8, 7)
    image(tmp_path / "images/a.jpg")
    png(tmp_path / "masks/a.png", colors)
    table = write(tmp_path / "t.yaml", "void: [0, 0, 0]\ncar: [64, 0, 128]\n")
    base = ("colors", "--val", tmp_path / "masks", tmp_path / "images", "--colors", table)
    assert run(*base, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "a.png: unknown colour [9, 8, 7] (1 pixels)" in said and "t.yaml" in said
    assert run(*base, "--out", tmp_path / "out", "--unknown-colors", "ignore") == 0
    mask = mask_of(tmp_path / "out", "a", "val")
    assert mask[3, 25] == 255 and (mask[:, :20] == 0).all() and (mask == 1).sum() == 199
    write(tmp_path / "t.yaml", "void: [0, 0, 0]\ncar: [0, 0, 0]\n")
    assert run(*base, "--out", tmp_path / "o2") == 2
    assert "has the colour of 'void'" in capsys.readouterr().err


def test_cvat_export(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = np.random.default_rng(3).integers(0, 2, (20, 30)).astype(np.uint8)
    for split in ("train", "val"):
        export = tmp_path / split
        image(tmp_path / f"{split}_images" / "a.jpg")
        picture = Image.fromarray(ids)
        picture.putpalette([0, 0, 0, 10, 10, 128])  # CVAT also writes palettes
        (export / "SegmentationClass").mkdir(parents=True)
        picture.save(export / "SegmentationClass" / "a.png")
        png(export / "SegmentationObject" / "a.png", ids)
        write(export / "labelmap.txt", "# label:color_rgb:parts:actions\nbg:0,0,0::\np:10,10,128::")
    pairs = [
        word
        for s in ("train", "val")
        for word in (f"--{s}", tmp_path / s, tmp_path / f"{s}_images")
    ]
    assert run("cvat", *pairs, "--out", tmp_path / "out") == 0
    assert np.array_equal(mask_of(tmp_path / "out", "a", "val"), ids)
    assert load_data(tmp_path / "out/data.yaml").classes == ["bg", "p"]
    write(tmp_path / "val/labelmap.txt", "bg:0,0,0::\nq:10,10,128::")
    assert run("cvat", *pairs, "--out", tmp_path / "o2") == 2
    assert "differs from" in capsys.readouterr().err


def test_label_studio_export(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image(tmp_path / "images/street.jpg")
    tree, car = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
    tree[:, :12], car[5:9, 8:20] = 255, 255
    folder = tmp_path / "png"
    png(folder / "task-4-annotation-9-by-me@x.org-tag-tree-0.png", tree)
    png(folder / "task-4-annotation-9-by-me@x.org-tag-fire-car-0.png", car)
    tasks = write(
        tmp_path / "tasks.json",
        [{"id": 4, "data": {"image": "/data/upload/1/0a1b2c3d-street.jpg?x=1"}}],
    )
    base = ("label-studio", "--train", folder, tmp_path / "images", "--tasks", tasks)
    assert run(*base, "--out", tmp_path / "out") == 0
    wanted = np.zeros((20, 30), np.uint8)
    wanted[car > 0] = 1
    wanted[tree > 0] = 2  # the higher id on top
    assert np.array_equal(mask_of(tmp_path / "out", "street"), wanted)
    assert load_data(tmp_path / "out/data.yaml").classes == ["background", "fire-car", "tree"]
    png(folder / "task-4-annotation-10-by-you-tag-tree-0.png", car)
    assert run(*base, "--out", tmp_path / "o2") == 2
    assert "task 4: [9, 10]" in capsys.readouterr().err
    assert run(*base, "--out", tmp_path / "o2", "--latest") == 0
    assert np.array_equal(mask_of(tmp_path / "o2", "street"), (car > 0).astype(np.uint8))
    png(folder / "other.png", car)
    assert run(*base, "--out", tmp_path / "o3", "--latest") == 2
    assert "other.png: the name is not task-ID" in capsys.readouterr().err


def test_no_split_is_an_error(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("coco", "--out", tmp_path / "out") == 2
    assert "Give --train, --val or --test" in capsys.readouterr().err
