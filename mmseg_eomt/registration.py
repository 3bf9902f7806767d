"""Components for mmseg's registries, which import them when something is looked up there."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from mmseg_eomt import compat

# Registry of mmseg -> modules of this package that hold components of it.
LOCATIONS: dict[str, tuple[str, ...]] = {
    "DATASETS": ("datasets.folder_dataset",),
    "DATA_SAMPLERS": ("datasets.samplers",),
    "HOOKS": (
        "engine.hooks.checkpoint",
        "engine.hooks.mask_annealing",
        "engine.hooks.prediction_pictures",
        "engine.hooks.profile",
        "engine.hooks.progress",
        "engine.hooks.start_from",
        "engine.hooks.training_log",
        "engine.hooks.weight_hash",
    ),
    "LOG_PROCESSORS": ("engine.hooks.training_log",),
    "LOOPS": ("engine.train_loop",),
    "METRICS": ("evaluation.segmentation_metric",),
    "MODELS": (
        "models.backbones",
        "models.eomt_head",
        "models.eomt_segmentor",
        "models.mask_loss",
        "models.matcher",
    ),
    "OPTIM_WRAPPERS": ("engine.mixed_precision",),
    "OPTIM_WRAPPER_CONSTRUCTORS": ("engine.optimizer",),
    "PARAM_SCHEDULERS": ("engine.schedules",),
    "RUNNERS": ("engine.runner",),
    "TRANSFORMS": (
        "datasets.transforms.albumentations_steps",
        "datasets.transforms.color",
        "datasets.transforms.crops",
        "datasets.transforms.loading",
        "datasets.transforms.rotation",
    ),
    "VISBACKENDS": ("engine.loggers",),
    "WEIGHT_INITIALIZERS": ("checkpoints.backbone_weights",),
}


def register() -> None:
    """Mends what the packages need (`compat.apply`) and tells mmseg's registries where to look.

    Calling it again does nothing, and so does a call within a call: importing mmseg makes one.
    """
    compat.apply()
    registries = importlib.import_module("mmseg.registry")
    for name, modules in LOCATIONS.items():
        # What `Registry(locations=...)` takes; there is no public way to add to it.
        registry = getattr(registries, name)
        found = [f"mmseg_eomt.{module}" for module in modules]
        if not set(found) <= set(registry._locations):
            registry._locations.extend(found)
            registry._imported = False


class AfterImport(MetaPathFinder):
    """Calls a function right after a package was imported, then takes itself off.

    Looking the package up (``importlib.util.find_spec``) calls nothing.

    Args:
        package (str): The package waited for.
        function (Callable): Called without arguments. What it raises ends the import.
    """

    def __init__(self, package: str, function: Callable[[], object]) -> None:
        self.package = package
        self.function = function

    def put_on(self) -> None:
        """Comes before the other finders."""
        sys.meta_path.insert(0, self)

    def take_off(self) -> None:
        """Leaves the finders, if it is one of them."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Lets the other finders find the package, and puts itself before its loader."""
        if name != self.package:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = None if finder is self or find is None else find(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Before(spec.loader, self)
                return spec  # type: ignore[no-any-return]
        return None


class _Before(Loader):
    """Loads with the package's own loader, then calls the function."""

    def __init__(self, loader: Loader, hook: AfterImport) -> None:
        self.loader = loader
        self.hook = hook

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # As if this loader had never been there: sources and resources are read through it.
        module.__loader__ = self.loader
        assert module.__spec__ is not None, "importlib has set it"
        module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        self.hook.take_off()
        self.hook.function()
