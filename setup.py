"""Metadata and dependencies of mmseg_eomt; every bound has its reason beside it."""

import runpy
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent

REQUIRES = [
    # 2.6: torch.load allows weights only by default and takes (object, name) pairs in its
    # allow-list. Tested with 2.11 and 2.15.
    "torch>=2.6",
    # timm imports it unconditionally; each release needs its own torch, the resolver pairs them.
    "torchvision",
    # 1.0.20: first with the DINOv3 models and their *_qkvb variants. Tested with 1.0.31.
    "timm>=1.0.20",
    # 1.26: first built for Python 3.12.
    "numpy>=1.26",
    "scipy",  # linear_sum_assignment
    "safetensors",
    "pillow",
    "pyyaml",
    # TIFFs of any number of bands: OpenCV multiplies four bands by the last one, Pillow reads
    # neither five bands nor separate planes.
    "tifffile",
    "packaging",
    "rich",  # progress bar; mmengine depends on it as well
    "tensorboard",  # the default logger
]

DEPLOY = [
    "aenum",  # all that mmdeploy 1.3.1 really imports of its dependencies and we do not have
    "onnx>=1.17",  # 1.17: opset 22 and bfloat16 in the checker
    "onnxruntime>=1.20",  # 1.20: opset 21; tested with 1.32
    "onnxscript",  # torch.onnx.export imports it
    "onnxslim",  # simplifies graphs without running them
]

# The OpenMMLab packages exist twice under the same import names. Requiring one family would
# overwrite the other where a user has it, so both are extras (see "Which packages" in README.md).
EXTRAS = {
    "openmmlab": [
        # 0.10.7: last release, the only one that mmseg_eomt.compat was checked against.
        "mmengine>=0.10.7,<0.11",
        # 2.2.0 trips mmsegmentation's own version assertion; 2.1.0 is the first on NumPy 2.
        "mmcv-lite>=2.1.0,<2.2.0",
        # 1.2.2: last release; compat mends exactly this one.
        "mmsegmentation==1.2.2",
        # 1.2.0: last release.
        "mmpretrain==1.2.0",
        # Imported by mmsegmentation 1.2.2, which does not declare them.
        "ftfy",
        "regex",
    ],
    "onedl": [
        # Lowest versions that ran here. mmcv is left out on purpose: mmcv-lite requires the
        # upstream mmengine, which would overwrite onedl-mmengine, and onedl-mmcv compiles.
        # Install it with `pip install --no-deps mmcv-lite==2.2.0` (the Makefile does).
        "onedl-mmengine>=0.10.12",
        "onedl-mmsegmentation>=1.4.2",
        "onedl-mmpretrain>=1.3.6",
    ],
    # MMDeploy is not here: its pins (protobuf<=3.20.2) exclude every current onnx. Install it
    # with `pip install --no-deps mmdeploy==1.3.1` (the Makefile does).
    "deploy": DEPLOY,
    # 2: the step seeds each transform by attributes that 1 does not have. It brings
    # opencv-python-headless, which shares its files with mmcv's opencv-python: keep both at one
    # version.
    "albumentations": ["albumentations>=2,<3"],
    "wandb": ["wandb"],
    "mlflow": ["mlflow"],
    "dev": [
        *DEPLOY,  # export and its check are tested
        "albumentations>=2,<3",  # the optional step is tested
        "build",
        "grimp",  # the graph of imports that tests/architecture holds against the floors
        "mlflow",  # its and wandb's loggers are tested
        "mypy>=1.15",
        "networkx",  # circles in that graph; torch has it as well
        "pycocotools",  # the independent implementation that COCO's masks are tested against
        "pytest>=8",
        "pytest-xdist",
        # The formatter's output differs between minor versions.
        "ruff>=0.17,<0.18",
        "scikit-learn",  # the independent implementation of k-NN, linear probe and PCA
        "setuptools>=77",  # as in pyproject.toml: a test builds the wheel without isolation
        # 4.57: first with EoMT on DINOv3, the independent implementation in the parity tests.
        "transformers>=4.57",
        "tritonclient[http]",  # the client of mmseg_eomt.deploy.triton is tested
        "types-PyYAML",
        "wandb",
    ],
}


class BuildWithConfigs(build_py):
    """Puts configs, tools and projects into the wheel, below mmseg_eomt/.mim as mm packages do."""

    def run(self):
        super().run()
        if self.editable_mode:
            return  # an editable install reads them from the clone
        target = Path(self.build_lib) / "mmseg_eomt" / ".mim"
        for folder in ("configs", "tools", "projects"):
            shutil.rmtree(target / folder, ignore_errors=True)
            shutil.copytree(
                ROOT / folder, target / folder, ignore=shutil.ignore_patterns("__pycache__")
            )


setup(
    name="mmseg_eomt",
    version=runpy.run_path(str(ROOT / "mmseg_eomt" / "version.py"))["__version__"],
    description="EoMT (Encoder-only Mask Transformer) semantic segmentation on DINOv2 and DINOv3 "
    "for MMSegmentation",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["semantic segmentation", "EoMT", "DINOv2", "DINOv3", "MMSegmentation"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    # 3.10: oldest that torch, timm and onedl-mmengine still support. 3.14: pkgutil.find_loader,
    # which mmengine and mmcv call, is gone.
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["mmseg_eomt", "mmseg_eomt.*"]),
    package_data={"mmseg_eomt": ["py.typed"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    cmdclass={"build_py": BuildWithConfigs},
    zip_safe=False,
)
