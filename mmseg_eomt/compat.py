"""What today's packages need to work together, and nothing else.

`apply` runs first when `mmseg_eomt` is imported. It checks that one family of OpenMMLab
packages is installed (upstream, or the maintained ``onedl-*`` distributions of the same import
names) and then goes through `ENTRIES`. An entry acts only where its break is present, so on a
healthy installation this module changes nothing; errors it does not know are left to rise.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from packaging.version import Version

INSTALL = "pip install 'mmseg_eomt[openmmlab]'"

# Import name -> (lowest version that fits, why). mmseg asserts its own upper bound on mmcv.
REQUIRED = {
    "mmengine": ("0.10.4", "earlier ones do not run on Python 3.12"),
    "mmcv": ("2.1.0", "earlier ones do not run on NumPy 2"),
    "mmseg": ("1.2.2", "the last upstream release, whose heads and data samples are used here"),
}


@dataclass(frozen=True)
class Entry:
    """One known break between packages and its mend.

    Attributes:
        name (str): Short name, returned by `apply` when the entry acted.
        package (str): The distribution at fault and its versions.
        problem (str): What goes wrong without the entry.
        until (str): When the entry can be deleted.
        needed (Callable): Tells whether the break is present here.
        mend (Callable): Mends it in this process.
    """

    name: str
    package: str
    problem: str
    until: str
    needed: Callable[[], bool]
    mend: Callable[[], None]


def apply() -> list[str]:
    """Check the OpenMMLab packages and mend the known breaks that are present.

    Calling it again does nothing.

    Returns:
        list[str]: Names of the entries that acted in this call.

    Raises:
        ImportError: If mmengine, mmcv or mmseg is missing or does not fit the others.
    """
    check_packages()
    acted = []
    for entry in ENTRIES:
        if entry.needed():
            entry.mend()
            acted.append(entry.name)
    return acted


def check_packages() -> None:
    """Raise an `ImportError` naming the pip command if an OpenMMLab package is missing or unfit."""
    for name, (lowest, reason) in REQUIRED.items():
        if importlib.util.find_spec(name) is None:
            raise ImportError(
                f"mmseg_eomt needs the package {name!r}, which is not installed. Install one "
                f"family of OpenMMLab packages: {INSTALL} (or [onedl], see the README)."
            )
        try:
            module = importlib.import_module(name)
        except AssertionError as error:
            # mmseg/__init__.py asserts the versions of mmcv and mmengine that it accepts.
            raise ImportError(
                f"{name} does not fit the other OpenMMLab packages installed here: {error} "
                f"Install a set that fits: {INSTALL} (or [onedl], see the README)."
            ) from error
        found = str(module.__version__)
        if Version(found) < Version(lowest):
            raise ImportError(
                f"mmseg_eomt needs {name}>={lowest} ({reason}), found {found} in "
                f"{module.__file__}. Install it with: {INSTALL}"
            )


# --- mmcv.ops without compiled mmcv ---------------------------------------------------------


def _ops_not_compiled() -> bool:
    try:
        importlib.import_module("mmcv.ops")
    except ModuleNotFoundError as error:
        if error.name == "mmcv._ext":
            return True
        raise
    return False


def _install_python_ops() -> None:
    """Put a `mmcv.ops` in place that offers mmcv's pure Python operators only."""
    mmcv = importlib.import_module("mmcv")
    folder = Path(str(mmcv.__file__)).parent / "ops"

    def missing(name: str) -> ModuleNotFoundError:
        return ModuleNotFoundError(
            f"mmcv.ops.{name} needs mmcv's compiled operators (mmcv._ext), which the mmcv in "
            f"{folder.parent} does not have. mmseg_eomt does not use it; to use a model that "
            "does, install a full mmcv built for your PyTorch.",
            name="mmcv._ext",
        )

    def sigmoid_focal_loss(*args: Any, **kwargs: Any) -> NoReturn:
        raise missing("sigmoid_focal_loss")

    def find(name: str) -> Any:
        # Python's own machinery probes dunder names and expects AttributeError for them.
        if name.startswith("__"):
            raise AttributeError(f"module 'mmcv.ops' has no attribute {name!r}")
        raise missing(name)

    # mmseg guards its optional operators with `except ModuleNotFoundError`, hence that type.
    # `__path__` lets the pure Python files of mmcv's own ops folder be imported unchanged.
    ops: Any = ModuleType("mmcv.ops", "mmcv's pure Python operators (see mmseg_eomt.compat).")
    ops.__path__ = [str(folder)]
    ops.__spec__ = importlib.machinery.ModuleSpec("mmcv.ops", loader=None, is_package=True)
    ops.__spec__.submodule_search_locations = ops.__path__
    ops.__getattr__ = find
    ops.sigmoid_focal_loss = sigmoid_focal_loss
    sys.modules["mmcv.ops"] = ops
    try:
        # Importing a submodule binds it to its parent; the function takes the name after that.
        ops.point_sample = importlib.import_module("mmcv.ops.point_sample").point_sample
    except BaseException:
        del sys.modules["mmcv.ops"]
        raise
    mmcv.ops = ops  # type: ignore[attr-defined]


# --- torch.load of training checkpoints written by mmengine ----------------------------------

_STATISTICS = ("min", "max", "current", "mean")


def _history_not_allowed() -> bool:
    if not _is_installed("mmengine"):
        return False
    import torch
    from mmengine.logging import HistoryBuffer

    # PyTorch 2.6 made `weights_only=True` the default of torch.load, which mmengine relies on.
    if Version(torch.__version__) < Version("2.6"):
        return False
    return HistoryBuffer not in torch.serialization.get_safe_globals()


def _allow_history() -> None:
    """Allow the plain-data types inside mmengine's training checkpoints in `torch.load`.

    mmengine pickles its message hub: `HistoryBuffer` objects, which hold NumPy arrays and
    bound statistics (``getattr(HistoryBuffer, 'mean')``).
    """
    import numpy as np
    import torch
    from mmengine.logging import HistoryBuffer

    multiarray: Any = importlib.import_module("numpy._core.multiarray")

    def history_statistic(owner: object, name: str) -> Any:
        """Stand in for `getattr`, for the four statistics and nothing else."""
        if owner is not HistoryBuffer or name not in _STATISTICS:
            raise ValueError(
                f"the checkpoint asks for getattr({owner!r}, {name!r}); only the statistics "
                f"{', '.join(_STATISTICS)} of mmengine's HistoryBuffer are allowed. Do not load "
                "this file unless you trust its source."
            )
        return getattr(HistoryBuffer, name)

    allowed: list[Any] = [HistoryBuffer, (history_statistic, "builtins.getattr")]
    allowed += [np.ndarray, np.dtype, np.bool_, np.int32, np.int64, np.float32, np.float64]
    allowed += [getattr(np.dtypes, f"{kind}DType") for kind in _DTYPES]
    # NumPy 2 renamed its private module; files written under NumPy 1 name the old one.
    for module in ("numpy._core.multiarray", "numpy.core.multiarray"):
        allowed += [
            (getattr(multiarray, function), f"{module}.{function}")
            for function in ("_reconstruct", "scalar")
        ]
    torch.serialization.add_safe_globals(allowed)


_DTYPES = ("Bool", "Int32", "Int64", "Float32", "Float64")


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


ENTRIES = (
    Entry(
        name="mmcv.ops",
        package="mmcv-lite, or mmcv built without its operators, with mmsegmentation<=1.2.2",
        problem="mmseg imports point_sample and sigmoid_focal_loss from mmcv.ops unconditionally, "
        "and mmcv.ops imports compiled code; neither is used by EoMT.",
        until="mmsegmentation imports them where they are used (onedl-mmsegmentation does).",
        needed=_ops_not_compiled,
        mend=_install_python_ops,
    ),
    Entry(
        name="torch.load",
        package="mmengine<=0.10.7 with torch>=2.6",
        problem="resume, load_from and test refuse a training checkpoint: torch.load allows "
        "weights only, and the file holds mmengine's HistoryBuffer and NumPy arrays.",
        until="mmengine stores plain data or allows its own types.",
        needed=_history_not_allowed,
        mend=_allow_history,
    ),
)
