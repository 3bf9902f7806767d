"""Model names of the Python call, and the configs of the same name."""

from __future__ import annotations

import difflib
from pathlib import Path

import mmseg_eomt

ARCHITECTURES = {
    "dinov2": ("vits14", "vitb14", "vitl14", "vitg14"),
    "dinov3": (
        "vits16",
        "vits16plus",
        "vitb16",
        "vitl16",
        "vitl16plus",
        "vith16plus",
        "vit7b16",
    ),
}
MODEL_NAMES = tuple(
    f"{family}/{arch}-eomt" for family, archs in ARCHITECTURES.items() for arch in archs
)


def config_path(name: str) -> Path:
    """Find a config of this repository, also when the package is installed.

    Args:
        name: A model name ('dinov3/vits16-eomt': its folder config), the stem of a config
            ('dinov3_vits16_ade20k') or a path below configs/ ('eomt/dinov3_vits16_ade20k.py').

    Raises:
        ValueError: If there is no such config; the message lists the nearest ones.
        FileNotFoundError: If the configs are not installed.
    """
    root = configs_folder()
    if name in MODEL_NAMES:
        family, arch = name.removesuffix("-eomt").split("/")
        name = f"{family}_{arch}_folder"
    relative = Path(name if name.endswith(".py") else f"{name}.py")
    for candidate in (root / relative, root / "eomt" / relative):
        if candidate.is_file():
            return candidate
    known = sorted(path.stem for path in (root / "eomt").glob("*.py"))
    raise ValueError(
        f"no config or model {name!r}. {nearest(name, [*known, *MODEL_NAMES])} "
        f"Models: {', '.join(MODEL_NAMES)}."
    )


def model_config_path(model: str) -> Path:
    """Return the config that a model name stands for.

    Raises:
        ValueError: If there is no such model; the message lists all.
    """
    if model not in MODEL_NAMES:
        raise ValueError(
            f"model is {model!r}. {nearest(model, MODEL_NAMES)} Allowed: {', '.join(MODEL_NAMES)}."
        )
    return config_path(model)


def configs_folder() -> Path:
    """Return configs/ of a checkout, or its copy inside an installed package.

    Raises:
        FileNotFoundError: If neither exists.
    """
    package = Path(mmseg_eomt.__file__).parent
    candidates = (package.parent / "configs", package / ".mim" / "configs")
    for candidate in candidates:
        if (candidate / "eomt").is_dir():
            return candidate
    raise FileNotFoundError(
        f"no configs of mmseg_eomt in {' or '.join(map(str, candidates))}: install the package "
        "again from a wheel or a checkout that has them."
    )


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """Return 'Did you mean ...?' or nothing."""
    close = difflib.get_close_matches(name, known, n=3)
    return f"Did you mean {' or '.join(map(repr, close))}?" if close else ""
