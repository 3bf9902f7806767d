"""Importing mmseg_eomt registers everything, in any order; some of it needs no PyTorch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmseg_eomt.registration import LOCATIONS

ROOT = Path(__file__).parents[2]

HEAVY = "('torch', 'mmengine', 'mmcv', 'mmseg', 'mmpretrain', 'timm')"
NOTHING_HEAVY = f"import sys; assert not [name for name in {HEAVY} if name in sys.modules]\n"
BUILDS = """
from mmseg.registry import MODELS, RUNNERS, TRANSFORMS
for registry, name in (
    (MODELS, "EoMTSegmentor"), (RUNNERS, "SegmentationRunner"), (TRANSFORMS, "ResizeShortSide")
):
    assert registry.get(name) is not None, name
"""
# The hook acts once, goes, and leaves no trace at the package.
HOOK_ACTS = """
import importlib.machinery, inspect
def hooks(): return [f for f in sys.meta_path if type(f).__name__ == "AfterImport"]
assert len(hooks()) == 1
import mmseg
assert not hooks()
assert type(mmseg.__spec__.loader) is importlib.machinery.SourceFileLoader
assert mmseg.__loader__ is mmseg.__spec__.loader
assert "__version__" in inspect.getsource(mmseg)
"""
FROM_CONFIG = """
import mmseg_eomt
from mmengine.config import Config
cfg = Config.fromfile(mmseg_eomt.config_path("eomt/tiny_quickstart.py"))
from mmengine.registry import RUNNERS
with RUNNERS.switch_scope_and_registry(cfg.default_scope) as registry:  # as RUNNERS.build does
    assert registry.get(cfg.runner_type).__module__.startswith("mmseg_eomt.")
"""

ORDERS = {
    "mmseg first": "import mmseg, mmseg_eomt" + BUILDS,
    "mmengine first": "import mmengine, mmseg_eomt" + BUILDS,
    "mmseg second": "import mmseg_eomt\n" + NOTHING_HEAVY + HOOK_ACTS + BUILDS,
    "a module of mmseg second": "import mmseg_eomt" + BUILDS,
    "torch first": "import torch, mmseg_eomt" + BUILDS,
    "a config": FROM_CONFIG,
    "a config after an mm package": "import mmcv" + FROM_CONFIG,
    "a name": "import mmseg_eomt; mmseg_eomt.load_model" + BUILDS,
    "a name from": "from mmseg_eomt import load_model" + BUILDS,
    "all names": "from mmseg_eomt import *" + BUILDS,
    "a sub-package by attribute": "import mmseg_eomt; mmseg_eomt.models.backbones" + BUILDS,
    "apis": "import mmseg_eomt.apis" + BUILDS,
    "datasets": "import mmseg_eomt.datasets" + BUILDS,
    "engine": "import mmseg_eomt.engine" + BUILDS,
    "evaluation": "import mmseg_eomt.evaluation" + BUILDS,
    "models": "import mmseg_eomt.models" + BUILDS,
    "checkpoints": "import mmseg_eomt.checkpoints.weights_file" + BUILDS,
    "a file": "import mmseg_eomt.models.positions" + BUILDS,
}
LIGHT = {
    "the package": "import mmseg_eomt; mmseg_eomt.__version__; dir(mmseg_eomt)",
    "where configs lie": "import mmseg_eomt; mmseg_eomt.config_path('eomt/tiny_quickstart.py')",
    "exported models": "from mmseg_eomt.deploy.metadata import DeployMetadata",
    "headers": "from mmseg_eomt.header import ModelHeader",
    "looking mmseg up": "import mmseg_eomt, importlib.util; importlib.util.find_spec('mmseg')",
}
# As where the packages are not installed: a finder that finds none of them.
WITHOUT = f"""
import sys
class Missing:
    def find_spec(name, path=None, target=None):
        if name in {HEAVY}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing)
"""


WITHOUT_TORCH = ("commands", "datasets", "deploy", "images")  # sub-packages


def run(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def check(code: str) -> None:
    result = run(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_every_order_of_imports_registers_everything(order: str) -> None:
    check(ORDERS[order])


@pytest.mark.parametrize("order", ["mmseg second", "a config"])
def test_common_orders_of_imports_register_everything(order: str) -> None:
    check(ORDERS[order])


@pytest.mark.parametrize("name", LIGHT)
def test_what_needs_no_torch_imports_none(name: str) -> None:
    check(LIGHT[name] + "\n" + NOTHING_HEAVY)
    if name != "looking mmseg up":
        check(WITHOUT + LIGHT[name])


def test_what_needs_the_packages_says_how_to_install_them() -> None:
    result = run(WITHOUT + "import mmseg_eomt; mmseg_eomt.load_model")
    assert "ModuleNotFoundError" in result.stderr


def test_each_sub_package_mends_the_packages_first_or_needs_no_torch() -> None:
    for path in sorted((ROOT / "mmseg_eomt").glob("*/__init__.py")):
        mends = "compat.apply()" in path.read_text()
        assert mends != (path.parent.name in WITHOUT_TORCH), path


def test_every_component_lies_where_its_registry_looks() -> None:
    """A file that registers something and is not in the table would be found by chance alone."""
    registers = re.compile(r"^@([A-Z_]+)\.register_module\(", re.MULTILINE)
    found: dict[str, set[str]] = {}
    for path in (ROOT / "mmseg_eomt").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT / "mmseg_eomt").with_suffix("").parts)
        if not module.startswith("deploy."):  # in registries of MMDeploy
            for registry in registers.findall(path.read_text()):
                found.setdefault(registry, set()).add(module)
    assert found == {registry: set(modules) for registry, modules in LOCATIONS.items()}


def test_unknown_names_are_attribute_errors() -> None:
    import mmseg_eomt

    with pytest.raises(AttributeError, match=r"module 'mmseg_eomt' has no attribute 'lod_model'"):
        mmseg_eomt.lod_model  # noqa: B018
    assert set(mmseg_eomt.__all__) <= set(dir(mmseg_eomt))
