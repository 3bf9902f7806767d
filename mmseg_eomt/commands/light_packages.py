"""Packages that others import without using, as shells that load when they are used.

timm imports wandb and torchvision's models (and with them PyTorch's compiler), mmengine imports
transformers, mmseg SciPy's optimisers and albumentations: half of the time that a command takes to
start. In the process of a command these are empty modules until somebody asks for a name in them.
A program that imports `mmseg_eomt` sees nothing of this.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Package -> its names that others take at import. They get functions that load at the first call.
SHELLS: dict[str, tuple[str, ...]] = {
    "albumentations": ("Compose",),  # mmseg.datasets.transforms
    "ftfy": (),  # mmseg.utils.tokenizer
    "scipy.interpolate": (),  # mmseg.models.backbones
    "scipy.ndimage": ("distance_transform_edt", "gaussian_filter"),  # mmseg's losses, transforms
    "scipy.optimize": ("linear_sum_assignment",),  # mmseg.models.assigners and our matcher
    "torchvision": (),  # timm.data
    "torchvision.models": (),  # timm.layers
    "torchvision.ops": (),  # likewise; it imports the compiler
    "transformers": ("Adafactor",),  # mmengine.optim
    "wandb": (),  # timm.utils
}


def use_light_packages() -> None:
    """Puts the shells on for what is not imported yet, and lets garbage be looked for less often.

    Python's collector goes over all objects again and again while thousands of modules come in,
    a quarter of the time of a start.
    """
    gc.set_threshold(50_000, 20, 50)
    if not any(isinstance(finder, _ShellFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ShellFinder())


def imports_done() -> None:
    """Takes what lives as long as the process, modules above all, out of the collector's rounds.

    mmengine collects garbage for each dataset, which otherwise takes half a second.
    """
    gc.freeze()
    atexit.register(gc.unfreeze)  # at the end all is collected; some extensions count on it


class _Shell(ModuleType):
    """A module that is executed when a name is asked for that is none of its modules."""

    def __getattr__(self, name: str) -> Any:
        if name in ("__file__", "__cached__", "__path__"):
            raise AttributeError(name)  # importlib asks for them before it sets them
        package = self.__name__
        executed = "__executed__" in self.__dict__
        if not executed and name in SHELLS[package]:
            return _forward(package, name)
        is_module = not name.startswith("_") and "__path__" in self.__dict__
        if not executed and is_module and importlib.util.find_spec(f"{package}.{name}"):
            return importlib.import_module(f"{package}.{name}")
        module = _executed(package)
        if module is self and executed:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(module, name)


def _forward(package: str, name: str) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return getattr(_executed(package), name)(*args, **kwargs)

    forward.__name__ = forward.__qualname__ = name
    return forward


def _executed(package: str) -> ModuleType:
    """The package, executed if it was a shell until now. It may have put another in its place."""
    module = sys.modules[package]
    if isinstance(module, _Shell) and "__executed__" not in module.__dict__:
        module.__dict__["__executed__"] = True
        assert module.__spec__ is not None and module.__spec__.loader is not None
        module.__spec__.loader.exec_module(module)
    return sys.modules[package]


class _ShellFinder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in SHELLS:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = None if finder is self or find is None else find(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _ShellLoader(spec.loader)
                return spec  # type: ignore[no-any-return]
        return None


class _ShellLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Shell(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        # As if this loader had never been there; `_executed` executes the module.
        module.__loader__ = self.loader
        assert module.__spec__ is not None, "importlib has set it"
        module.__spec__.loader = self.loader
