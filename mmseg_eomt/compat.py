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
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from packaging.version import Version

INSTALL = (
    "Install one family of OpenMMLab packages: pip install 'mmseg_eomt[openmmlab]', or "
    "pip install 'mmseg_eomt[onedl]' and then pip install --no-deps mmcv-lite==2.2.0"
)

# Import name -> (lowest version that fits, why). mmseg asserts its own upper bound on mmcv.
REQUIRED = {
    "mmengine": ("0.10.4", "earlier ones do not run on Python 3.12"),
    "mmcv": ("2.1.0", "earlier ones do not run on NumPy 2"),
    "mmseg": ("1.2.2", "the last upstream release, whose data samples and decoder are used here"),
}

# Imported by mmseg, which does not declare them.
UNDECLARED = ("ftfy", "regex")

# Distributions that write the same files.
SAME_FILES = (("mmengine", "onedl-mmengine"), ("mmsegmentation", "onedl-mmsegmentation"))


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
    """Check that the OpenMMLab packages are there and fit each other.

    Raises:
        ImportError: If one is missing or does not fit; the message holds the pip command.
    """
    for name in (*REQUIRED, *UNDECLARED):
        if importlib.util.find_spec(name) is None:
            raise ImportError(
                f"mmseg_eomt needs the package {name!r}, which is not installed. {INSTALL}.",
                name=name,
            )
    for upstream, fork in SAME_FILES:
        if _is_installed(upstream) and _is_installed(fork):
            # Which of the two is on disk depends on the order of installation.
            warnings.warn(
                f"{upstream} and {fork} are both installed and overwrite each other's files. "
                f"Uninstall both, then install one of them. {INSTALL}.",
                stacklevel=3,
            )
    for name, (lowest, reason) in REQUIRED.items():
        try:
            module = importlib.import_module(name)
        except AssertionError as error:
            # mmseg/__init__.py asserts the versions of mmcv and mmengine that it accepts.
            raise ImportError(
                f"{name} does not fit the other OpenMMLab packages: {error} {INSTALL}.", name=name
            ) from error
        if Version(module.__version__) < Version(lowest):
            raise ImportError(
                f"mmseg_eomt needs {name}>={lowest} ({reason}), found {module.__version__} in "
                f"{module.__file__}. {INSTALL}.",
                name=name,
            )


# --- mmcv.ops without compiled mmcv ---------------------------------------------------------


def _ops_not_compiled() -> bool:
    mmseg = importlib.import_module("mmseg")
    if Version(mmseg.__version__) > Version("1.2.2"):
        return False
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
_DTYPES = ("Bool", "Int32", "Int64", "Float32", "Float64")


def _history_not_allowed() -> bool:
    import torch
    from mmengine.logging import HistoryBuffer

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


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


ENTRIES = (
    Entry(
        name="mmcv.ops",
        package="mmsegmentation<=1.2.2 with mmcv-lite, or with mmcv built without its operators",
        problem="mmseg imports point_sample and sigmoid_focal_loss from mmcv.ops unconditionally, "
        "and mmcv.ops imports compiled code; neither is used by EoMT.",
        until="mmsegmentation<=1.2.2 is no longer supported (onedl-mmsegmentation is mended).",
        needed=_ops_not_compiled,
        mend=_install_python_ops,
    ),
    Entry(
        name="torch.load",
        package="mmengine<=0.10.7 and onedl-mmengine<=0.10.12, with torch>=2.6",
        problem="torch.load allows weights only, and a training checkpoint holds mmengine's "
        "HistoryBuffer and NumPy arrays: mmengine refuses to resume, load or test, and "
        "onedl-mmengine allows the whole of getattr, or falls back to unrestricted unpickling.",
        until="mmengine stores plain data, and checkpoints written before that no longer matter.",
        needed=_history_not_allowed,
        mend=_allow_history,
    ),
)


INSTALL_MMDEPLOY = "pip install --no-deps mmdeploy==1.3.1 && pip install aenum"


def require_mmdeploy() -> None:
    """Check that MMDeploy can be imported.

    Raises:
        ImportError: If it, or what it imports, is missing; the message holds the commands.
    """
    missing = [
        name
        for name in ("mmdeploy", "aenum", "onnx", "onnxruntime")
        if importlib.util.find_spec(name) is None
    ]
    if not missing:
        return
    command = INSTALL_MMDEPLOY
    if {"onnx", "onnxruntime"} & set(missing):
        command += " onnx onnxruntime onnxscript"
    raise ImportError(
        f"MMDeploy's tools need {', '.join(missing)}, which is not installed. Run: {command} "
        "(--no-deps, as MMDeploy's own pins exclude every current onnx).",
        name=missing[0],
    )
