"""Convert annotations to a folder dataset: python tools/convert_dataset.py KIND ... --out OUT"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmseg_eomt.commands.tool import add_debug, run_tool
from mmseg_eomt.datasets import convert

_SPLITS = ("train", "val", "test")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Convert annotations of other tools to OUT/data.yaml with indexed PNG masks. "
        "OUT appears when all is done, or not at all; originals are never changed."
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")

    coco = kinds.add_parser("coco", help="COCO JSON with polygons and run lengths")
    _add_splits(coco, "JSON")
    coco.add_argument(
        "--crowd",
        choices=("class", "ignore", "skip"),
        default="class",
        help="crowds (iscrowd), always below other annotations: pixels of their class (default), "
        "unlabelled, or left out",
    )
    coco.add_argument(
        "--skip-boxes", action="store_true", help="leave out annotations without a segmentation"
    )

    labelme = kinds.add_parser("labelme", help="labelme's JSON files")
    _add_splits(labelme, "JSON_FOLDER")
    labelme.add_argument("--labels", type=Path, metavar="TXT", help="class names, one a line")
    labelme.add_argument("--skip-shapes", action="store_true", help="leave out points and lines")

    cvat = kinds.add_parser("cvat", help="CVAT's export 'Segmentation mask'")
    _add_splits(cvat, "EXPORT", unlabelled=False)
    cvat.add_argument("--labelmap", type=Path, metavar="TXT", help="default: that of the export")

    studio = kinds.add_parser("label-studio", help="Label Studio's export of brush labels as PNG")
    _add_splits(studio, "PNG_FOLDER")
    studio.add_argument(
        "--tasks", type=Path, nargs="+", required=True, metavar="JSON", help="JSON export"
    )
    studio.add_argument("--labels", type=Path, metavar="TXT", help="class names, one a line")
    studio.add_argument(
        "--latest", action="store_true", help="of several annotations take the highest id"
    )

    colors = kinds.add_parser("colors", help="colour masks")
    _add_splits(colors, "MASKS", unlabelled=False)
    colors.add_argument(
        "--colors",
        type=Path,
        required=True,
        metavar="TABLE",
        help="labelmap.txt, lines 'R G B NAME', CSV with name, r, g, b, or YAML NAME: [R, G, B]",
    )
    for kind in (cvat, colors):
        kind.add_argument(
            "--mask-suffix", default="", metavar="END", help="end of the masks' stems, e.g. _L"
        )
        kind.add_argument("--unknown-colors", choices=("error", "ignore"), default="error")

    known = kinds.add_parser("describe", help="verify and describe a well-known dataset")
    known.add_argument("name", choices=tuple(convert.KNOWN))
    known.add_argument("root", type=Path, metavar="ROOT", help="its folder as published")
    _add_output(known)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Convert and say what came of it."""
    options = dict(vars(args))
    options.pop("debug")
    kind, out = options.pop("kind"), options.pop("out")
    if kind == "describe":
        print(convert.describe_known(options.pop("name"), options.pop("root"), out, **options))
        return
    given = {split: options.pop(split) for split in _SPLITS}
    splits = {split: (pair[0], pair[1]) for split, pair in given.items() if pair}
    if not splits:
        raise ValueError(f"{kind}: no split is given. Give --train, --val or --test.")
    converters = {
        "coco": convert.convert_coco,
        "labelme": convert.convert_labelme,
        "cvat": convert.convert_cvat,
        "label-studio": convert.convert_label_studio,
        "colors": convert.convert_colors,
    }
    print(converters[kind](splits, out, **options))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    return run_tool(run, parse_args(argv))


def _add_splits(
    parser: argparse.ArgumentParser, annotations: str, *, unlabelled: bool = True
) -> None:
    for split in _SPLITS:
        parser.add_argument(
            f"--{split}", nargs=2, type=Path, metavar=(annotations, "IMAGES"), help=f"of {split}"
        )
    if unlabelled:
        parser.add_argument(
            "--unlabelled",
            choices=("background", "ignore"),
            default="background",
            help="pixels without annotation: class 0 'background' (default), or unlabelled (255)",
        )
    parser.add_argument(
        "--ignore-classes", nargs="+", default=[], metavar="NAME", help="not to be learnt"
    )
    _add_output(parser)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--force", action="store_true", help="replace a folder this tool has made")
    parser.add_argument(
        "--copy-images", action="store_true", help="copy images; never name or link the originals"
    )
    add_debug(parser)
