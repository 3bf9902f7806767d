"""Makes a small segmentation dataset of procedural scenes, to try everything without a download.

    python tools/make_dataset.py OUT [--images 240] [--val 48] [--size 128x112] [--seed 0]

Landscapes of six classes. Their colours overlap on purpose (sky and water, grass and leaves,
bricks and autumn trees): shape and texture tell them apart. The same arguments give the same
scenes. OUT holds train/ and val/ with images/ (JPEG) and masks/ (PNG), and data.yaml.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Colors = NDArray[np.float32]  # [H, W, 3] or [3], RGB, 0 to 1
Mask = NDArray[np.bool_]  # [H, W]

CLASSES = ("sky", "grass", "water", "house", "tree", "ball")
SKY, GRASS, WATER, HOUSE, TREE, BALL = range(len(CLASSES))
PALETTE = (
    (135, 190, 235),
    (120, 170, 70),
    (40, 90, 170),
    (180, 80, 60),
    (30, 100, 40),
    (235, 200, 40),
)
_MARK = "# Made by tools/make_dataset.py; it may be written over by it.\n"

# RGB of typical materials. Each scene picks one per class and varies it.
_MATERIALS = {
    SKY: ((0.45, 0.65, 0.9), (0.7, 0.72, 0.75), (0.85, 0.6, 0.5), (0.3, 0.45, 0.6)),
    GRASS: ((0.35, 0.5, 0.2), (0.6, 0.55, 0.3), (0.45, 0.4, 0.25), (0.3, 0.4, 0.3)),
    WATER: ((0.25, 0.4, 0.6), (0.35, 0.5, 0.5), (0.45, 0.55, 0.7), (0.4, 0.42, 0.4)),
    HOUSE: ((0.6, 0.3, 0.22), (0.6, 0.55, 0.5), (0.7, 0.6, 0.4), (0.45, 0.42, 0.45)),
    TREE: ((0.2, 0.4, 0.15), (0.6, 0.4, 0.15), (0.55, 0.25, 0.15), (0.35, 0.45, 0.2)),
    BALL: ((0.8, 0.2, 0.2), (0.85, 0.75, 0.2), (0.25, 0.35, 0.75), (0.3, 0.6, 0.3)),
}


class Scene:
    """A picture and its labels while they are painted, from back to front.

    Args:
        rng (Generator): Source of all choices.
        height (int): Rows.
        width (int): Columns.
    """

    def __init__(self, rng: np.random.Generator, *, height: int, width: int) -> None:
        self.rng = rng
        self.height, self.width = height, width
        self.image: Colors = np.zeros((height, width, 3), np.float32)
        self.labels = np.zeros((height, width), np.uint8)
        self.y, self.x = np.mgrid[:height, :width].astype(np.float32)
        self.horizon = float(rng.uniform(0.3, 0.55)) * height

    def material(self, label: int) -> Colors:
        """A colour for a class."""
        colors = _MATERIALS[label]
        base = np.asarray(colors[self.rng.integers(len(colors))], np.float32)
        return np.asarray(base * self.rng.uniform(0.75, 1.25, 3), np.float32)

    def noise(self, cell_height: float, cell_width: float) -> NDArray[np.float32]:
        """Smooth noise ``[H, W]`` of mean 0 and about +-1, with cells of the given size."""
        rows = max(2, round(self.height / cell_height) + 1)
        cols = max(2, round(self.width / cell_width) + 1)
        grid = self.rng.uniform(-1, 1, (rows, cols)).astype(np.float32)
        smooth = cv2.resize(grid, (self.width, self.height), interpolation=cv2.INTER_CUBIC)
        return np.asarray(smooth, np.float32)

    def paint(self, where: Mask, label: int, color: Colors, texture: NDArray[np.float32]) -> None:
        """Covers ``where`` with ``color``, brightened by the texture ``[H, W]`` around 0."""
        shaded = color * (1 + texture[..., None])
        self.image[where] = np.broadcast_to(shaded, self.image.shape)[where]
        self.labels[where] = label

    def uniform(self, low: float, high: float) -> float:
        """One random number."""
        return float(self.rng.uniform(low, high))


def make_scene(seed: tuple[int, ...], width: int, height: int) -> tuple[Image.Image, Image.Image]:
    """Paints one scene.

    Args:
        seed (tuple[int, ...]): Equal seeds give equal scenes.
        width (int): Columns.
        height (int): Rows.

    Returns:
        tuple: The RGB image and the palette image of class ids.
    """
    scene = Scene(np.random.default_rng(seed), height=height, width=width)
    _sky(scene)
    _grass(scene)
    if scene.rng.random() < 0.75:
        _water(scene)
    painters: list[Callable[[Scene, float], None]] = [_house] * int(scene.rng.integers(0, 3))
    painters += [_tree] * int(scene.rng.integers(1, 3))
    painters += [_ball] * int(scene.rng.integers(1, 4))
    # Whatever stands lower in the picture is nearer and hides what is behind.
    feet = [scene.uniform(scene.horizon + 0.05 * height, 0.97 * height) for _ in painters]
    order = scene.rng.permutation(len(painters))
    for foot, index in sorted(zip(feet, order, strict=True)):
        painters[index](scene, foot)
    mask = Image.fromarray(scene.labels)
    mask.putpalette([channel for color in PALETTE for channel in color])
    return Image.fromarray(_photograph(scene)), mask


def _sky(scene: Scene) -> None:
    height, width = scene.height, scene.width
    clouds = scene.noise(height / 4, width / 3) + 0.5 * scene.noise(height / 9, width / 6)
    fade = (scene.y / height - 0.25) * scene.uniform(-0.5, 0.8)
    scene.paint(scene.y >= 0, SKY, scene.material(SKY), fade + 0.12 * clouds)


def _grass(scene: Scene) -> None:
    hills = scene.horizon + 0.05 * scene.height * scene.noise(scene.height, scene.width / 3)
    blades = 0.35 * scene.noise(3, 1.3) + 0.2 * scene.noise(6, 6)  # higher than wide
    scene.paint(scene.y > hills, GRASS, scene.material(GRASS), blades)


def _water(scene: Scene) -> None:
    height, width = scene.height, scene.width
    top = scene.horizon + scene.uniform(0.06, 0.25) * height
    thickness = scene.uniform(0.15, 0.32) * height
    if scene.rng.random() < 0.5:  # a river from side to side
        bend = 0.05 * height * scene.noise(height, width / 3)
        where = (scene.y > top + bend) & (scene.y < top + bend + thickness)
    else:  # a pond
        center, half = scene.uniform(0.2, 0.8) * width, scene.uniform(0.25, 0.45) * width
        middle = top + thickness / 2
        where = ((scene.x - center) / half) ** 2 + ((scene.y - middle) / thickness * 2) ** 2 < 1
    phase = scene.y * scene.uniform(1.1, 1.7) + 1.5 * scene.noise(6, 20)
    waves = 0.22 * np.sin(phase) + 0.08 * scene.noise(1.5, 8)
    scene.paint(where, WATER, scene.material(WATER), waves.astype(np.float32))


def _house(scene: Scene, foot: float) -> None:
    width = scene.uniform(0.22, 0.42) * scene.width
    height = scene.uniform(0.25, 0.45) * scene.height
    left = scene.uniform(-0.1, 0.9) * scene.width
    top = foot - height
    x, y = scene.x - left, scene.y - top
    wall = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    course = scene.uniform(4, 6)  # height of a row of bricks
    row = np.floor(y / course)
    joint = (y % course < 1) | ((x + row % 2 * course) % (2 * course) < 1)
    bricks = np.where(joint, 0.45, 0.0) + 0.12 * scene.noise(course, 2 * course)
    scene.paint(wall, HOUSE, scene.material(HOUSE), bricks.astype(np.float32))
    panes = (x % (width / 3) > width / 9) & (x % (width / 3) < width / 4.5) & (y > height * 0.25)
    panes &= wall & (y < height * 0.55)
    scene.paint(panes, HOUSE, scene.material(HOUSE) * np.float32(0.4), 0.1 * scene.noise(3, 3))
    peak = height * scene.uniform(0.3, 0.6)
    slope = np.abs(x - width / 2) / (width / 2 + 3)
    roof = (y < 0) & (y > -peak) & (slope < 1 + y / peak)
    tiles = np.where(y % 3 < 1, -0.35, 0.1) + 0.1 * scene.noise(3, 3)
    scene.paint(roof, HOUSE, scene.material(HOUSE) * np.float32(0.8), tiles.astype(np.float32))


def _tree(scene: Scene, foot: float) -> None:
    size = scene.uniform(0.14, 0.26) * scene.height
    center = scene.uniform(0.02, 0.98) * scene.width
    trunk_height = size * scene.uniform(0.7, 1.2)
    x, y = scene.x - center, scene.y - foot
    trunk = (np.abs(x) < size * 0.11 * (1 - y / trunk_height / 3)) & (y <= 0) & (y > -trunk_height)
    bark = 0.35 * scene.noise(8, 1.2)
    scene.paint(trunk, TREE, np.asarray((0.35, 0.27, 0.2), np.float32), bark)
    # An edge that wanders in and out reads as foliage.
    ragged = 1 + 0.35 * scene.noise(6, 6)
    crown = (x / size) ** 2 + ((y + trunk_height + 0.5 * size) / (size * 1.1)) ** 2 < ragged
    leaves = 0.4 * scene.noise(2.5, 2.5) + 0.35 * scene.noise(7, 7) - 0.25 * (y + 2 * size) / size
    scene.paint(crown, TREE, scene.material(TREE), leaves.astype(np.float32))


def _ball(scene: Scene, foot: float) -> None:
    radius = scene.uniform(0.1, 0.19) * scene.height
    center = scene.uniform(0.1, 0.9) * scene.width
    x, y = (scene.x - center) / radius, (scene.y - foot + radius) / radius
    angle = scene.uniform(0, np.pi)
    stripes = np.sin(4.5 * (x * np.cos(angle) + y * np.sin(angle))) > 0
    # Light from the upper left rounds it.
    shade = 0.35 * (0.3 - 0.5 * x - 0.7 * y)
    inside = x**2 + y**2 < 1
    scene.paint(inside & stripes, BALL, scene.material(BALL), shade.astype(np.float32))
    scene.paint(inside & ~stripes, BALL, scene.material(BALL), shade.astype(np.float32))


def _photograph(scene: Scene) -> NDArray[np.uint8]:
    """Light from one side, a tint, slight blur and sensor noise."""
    rng = scene.rng
    angle = scene.uniform(0, 2 * np.pi)
    along = (scene.x / scene.width - 0.5) * np.cos(angle) + (scene.y / scene.height - 0.5) * np.sin(
        angle
    )
    light = scene.uniform(0.75, 1.2) * (1 + scene.uniform(0, 0.5) * along)
    image = scene.image * light[..., None] * rng.uniform(0.9, 1.1, 3)
    image = cv2.GaussianBlur(image, (0, 0), scene.uniform(0.4, 0.7))
    image += rng.normal(0, scene.uniform(0.01, 0.03), image.shape)
    return np.asarray(np.clip(image * 255 + 0.5, 0, 255), np.uint8)


def write_dataset(out: Path, *, images: int, val: int, width: int, height: int, seed: int) -> None:
    """Writes the dataset.

    Args:
        out (Path): Folder; must be new, empty or made by this tool.
        images (int): Training scenes.
        val (int): Validation scenes.
        width (int): Mean width; scenes vary by up to a quarter.
        height (int): Mean height.
        seed (int): Equal seeds give equal datasets.

    Raises:
        FileExistsError: If ``out`` holds anything else.
    """
    _claim(out)
    for number, (split, count) in enumerate((("train", images), ("val", val))):
        for folder in ("images", "masks"):
            (out / split / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            key = (seed, number, index)
            size_rng = np.random.default_rng((*key, 1))
            w, h = (round(side * size_rng.uniform(0.75, 1.25)) for side in (width, height))
            image, mask = make_scene(key, w, h)
            image.save(out / split / "images" / f"scene_{index:05d}.jpg", quality=92)
            mask.save(out / split / "masks" / f"scene_{index:05d}.png")
    lines = [
        f"{split}: {{images: {split}/images, masks: {split}/masks}}" for split in ("train", "val")
    ]
    lines += ["classes:"] + [f"  {label}: {name}" for label, name in enumerate(CLASSES)]
    lines += ["palette:"] + [f"  - {list(color)}" for color in PALETTE]
    (out / "data.yaml").write_text(_MARK + "\n".join(lines) + "\n", encoding="utf-8")


def _claim(out: Path) -> None:
    """Refuses a folder with foreign content; empties one of ours of its scenes."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    own = out / "data.yaml"
    if not own.is_file() or not own.read_text(encoding="utf-8").startswith(_MARK):
        raise FileExistsError(
            f"{out} exists and was not made by this tool. Give the path of a new folder."
        )
    for split in ("train", "val"):
        for pattern in ("images/scene_*.jpg", "masks/scene_*.png"):
            for path in (out / split).glob(pattern):
                path.unlink()


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) >= 32 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT with sides of 32 or more")
    return int(parts[0]), int(parts[1])


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--images", type=int, default=240, help="training scenes (240)")
    parser.add_argument("--val", type=int, default=48, help="validation scenes (48)")
    parser.add_argument("--size", type=_size, default=(128, 112), help="mean WxH (128x112)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other scenes (0)")
    args = parser.parse_args(arguments)
    if args.images < 1 or args.val < 1 or args.seed < 0:
        parser.error("--images and --val must be at least 1, --seed at least 0")
    width, height = args.size
    try:
        write_dataset(
            args.out, images=args.images, val=args.val, width=width, height=height, seed=args.seed
        )
    except FileExistsError as error:
        sys.exit(str(error))
    print(f"{args.images} training and {args.val} validation scenes: {args.out / 'data.yaml'}")
