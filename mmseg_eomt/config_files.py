"""Where the package's own configs lie, in an installed package as in a clone."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent

# A wheel carries the configs under mmseg_eomt/.mim (the place where mm tools look for them); a
# clone or an editable install has them beside the package.
_FOLDERS = (_PACKAGE / ".mim" / "configs", _PACKAGE.parent / "configs")


def config_path(name: str) -> str:
    """Absolute path of a config of this package.

    In a config that lies elsewhere, this line works with every tool that reads the config, the
    tools of MMSegmentation included::

        _base_ = __import__('mmseg_eomt').config_path('eomt/dinov3_vits16_ade20k.py')

    MMEngine's own ``'package::config'`` form knows a fixed list of packages and needs
    ``pkg_resources``, which setuptools 82 dropped.

    Args:
        name (str): Path below ``configs``, e.g. ``'eomt/dinov3_vits16_ade20k.py'``.

    Returns:
        str: The absolute path.

    Raises:
        FileNotFoundError: If there is no such config; the message lists those of its folder.
    """
    root = config_root()
    path = root / name
    if path.is_file():
        return str(path)
    known = sorted(str(config.relative_to(root)) for config in path.parent.glob("*.py"))
    if not known:
        known = sorted(str(config.relative_to(root)) for config in root.glob("eomt/*.py"))
    raise FileNotFoundError(
        f"no config {name!r} in {root}. Give one of: {', '.join(known)} (or a path of your own "
        "without config_path)."
    )


def project_path(name: str) -> Path:
    """Folder of a project that comes with this package, `projects/NAME` of a clone.

    Raises:
        FileNotFoundError: If the installation does not hold it.
    """
    folder = config_root().with_name("projects") / name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: mmseg_eomt comes without this project here. Install the package again from "
            "its wheel or from a full clone."
        )
    return folder


def config_root() -> Path:
    """Folder that holds ``_base_`` and ``eomt``.

    Raises:
        FileNotFoundError: If the installation holds no configs.
    """
    for folder in _FOLDERS:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"mmseg_eomt in {_PACKAGE} has no configs (looked in {' and '.join(map(str, _FOLDERS))}). "
        "Install the package again from its wheel or from a full clone."
    )
