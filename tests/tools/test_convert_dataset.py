"""The conversion tool on real files: masks, data files, errors, and that nothing is harmed."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mmseg_eomt.datasets import FolderSegDataset, load_data

TOOL = Path(__file__).parents[2] / "tools" / "convert_dataset.py"
Run = Callable[..., int]


@pytest.fixture(name="run")
def _run() -> Run:
    spec = importlib.util.spec_from_file_location("convert_dataset", TOOL)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return lambda *arguments: int(tool.main([str(argument) for argument in arguments]))


def image(path: Path, width: int = 30, height: int = 20) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def png(path: Path, pixels: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def mask_of(out: Path, stem: str, split: str = "train") -> NDArray[np.uint8]:
    with Image.open(out / split / "masks" / f"{stem}.png") as file:
        assert file.mode == "L"
        return np.asarray(file)


def state(folder: Path) -> dict[str, str]:
    """Content of all files of a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def reads(out: Path, split: str = "train") -> FolderSegDataset:
    """The result as training reads it, every mask checked."""
    return FolderSegDataset(str(out / "data.yaml"), split=split, num_checked_masks=1000)


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


def known_voc(root: Path) -> tuple[int, int]:
    for stem in ("a", "b", "unlisted"):
        image(root / f"JPEGImages/{stem}.jpg")
    for stem in ("a", "b"):
        picture = Image.fromarray(np.full((20, 30), 20, np.uint8))
        picture.putpalette(list(range(63)))
        path = root / f"SegmentationClass/{stem}.png"
        path.parent.mkdir(exist_ok=True)
        picture.save(path)
    write(root / "ImageSets/Segmentation/train.txt", "a\n")
    write(root / "ImageSets/Segmentation/val.txt", "b\n")
    return 20, 20


def known_ade20k(root: Path) -> tuple[int, int]:
    for split in ("training", "validation"):
        image(root / f"images/{split}/a.jpg")
        mask = np.full((20, 30), 150, np.uint8)
        mask[0] = 0
        png(root / f"annotations/{split}/a.png", mask)
    return 150, 149


def known_cityscapes(root: Path) -> tuple[int, int]:
    for split in ("train", "val"):
        image(root / f"leftImg8bit/{split}/ulm/ulm_0_leftImg8bit.png")
        mask = np.full((20, 30), 33, np.uint8)
        mask[0] = 4
        png(root / f"gtFine/{split}/ulm/ulm_0_gtFine_labelIds.png", mask)
        png(root / f"gtFine/{split}/ulm/ulm_0_gtFine_color.png", np.zeros((20, 30, 4), np.uint8))
    return 18, 18


def known_coco_stuff(root: Path) -> tuple[int, int]:
    for split in ("train2017", "val2017"):
        image(root / f"images/{split}/000000000009.jpg")
        mask = np.full((20, 30), 181, np.uint8)
        mask[0] = 255
        png(root / f"annotations/{split}/000000000009.png", mask)
    return 181, 170


def known_coco_stuff_prepared(root: Path) -> tuple[int, int]:
    known_coco_stuff(root)
    for split in ("train2017", "val2017"):
        mask = np.full((20, 30), 170, np.uint8)
        png(root / f"annotations/{split}/000000000009_labelTrainIds.png", mask)
    return 170, 170


@pytest.mark.parametrize(
    ("name", "make", "bad_value"),
    [
        ("voc", known_voc, 21),
        ("ade20k", known_ade20k, 151),
        ("cityscapes", known_cityscapes, 34),
        ("coco-stuff", known_coco_stuff, 11),
        ("coco-stuff", known_coco_stuff_prepared, 171),
    ],
)
def test_known_datasets_are_verified_and_described(
    run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    make: Callable[[Path], tuple[int, int]],
    bad_value: int,
) -> None:
    root = tmp_path / "root"
    class_id, internal = make(root)
    before = state(root)
    assert run("describe", name, root, "--out", tmp_path / "out") == 0
    assert state(root) == before
    for split in ("train", "val"):
        dataset = reads(tmp_path / "out", split)
        assert len(dataset) == 1
        info = dataset.get_data_info(0)
        with Image.open(info["seg_map_path"]) as file:
            labels = info["label_table"](np.array(file), "mask")
        assert labels[-1, -1] == internal
        assert dataset.metainfo["class_ids"][internal] == class_id
    masks = [path for path in root.rglob("*.png") if path.stat().st_size and "val" in str(path)]
    wrong = next(
        path
        for path in sorted(masks or root.rglob("SegmentationClass/*.png"), reverse=True)
        if "leftImg8bit" not in str(path) and "color" not in path.name
    )
    png(wrong, np.full((20, 30), bad_value, np.uint8))
    assert run("describe", name, root, "--out", tmp_path / "o2") == 2
    said = capsys.readouterr().err
    assert f"unknown mask value {bad_value} (600 pixels)" in said and wrong.name in said
    wrong.unlink()
    assert run("describe", name, root, "--out", tmp_path / "o2") == 2
    assert wrong.name in capsys.readouterr().err
    assert not (tmp_path / "o2").exists()
