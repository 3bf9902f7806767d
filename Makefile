# Everything runs in an environment that is built here on first use.
#
#   make test                 unit tests (under 10 minutes on 2 cores)
#   make test-all             slow tests as well, exported graphs built by TensorRT-RTX among them
#   make quickstart           train, test, predict and export on a toy dataset, no GPU needed
#   make FAMILY=onedl test    the same with the onedl-* packages, in .venv-onedl
#
# Variables: PYTHON (interpreter of a new environment), FAMILY (openmmlab or onedl),
# INSTALLER (uv or pip), JOBS (test processes), QUICKSTART_ARGS, PYTEST_ARGS.

FAMILY ?= openmmlab
PYTHON ?= python3
JOBS ?= 2
QUICKSTART_ARGS ?=
PYTEST_ARGS ?=

ifeq ($(FAMILY),openmmlab)
VENV ?= .venv
else ifeq ($(FAMILY),onedl)
VENV ?= .venv-onedl
else
$(error FAMILY is '$(FAMILY)'; use openmmlab or onedl)
endif

PY := $(VENV)/bin/python
RTX := .venv-tensorrt-rtx
STAMP := $(VENV)/.installed

# Bytecode is compiled at once: where Python may not write it (PYTHONDONTWRITEBYTECODE), each start
# would compile 4,000 files anew.
# uv installs this environment in a quarter of pip's time, so it is fetched where it is missing.
# It reads no pip configuration: behind a mirror that only pip knows, use INSTALLER=pip.
INSTALLER ?= uv
UV := $(shell command -v uv 2>/dev/null)
ifeq ($(INSTALLER),pip)
CREATE := $(PYTHON) -m venv $(VENV)
INSTALL := $(PY) -m pip install --quiet
else ifneq ($(UV),)
CREATE := $(UV) venv --quiet --python $(PYTHON) $(VENV)
INSTALL := $(UV) pip install --quiet --compile-bytecode --python $(PY)
else
CREATE := $(PYTHON) -m venv $(VENV) && $(PY) -m pip install --quiet uv
INSTALL := $(PY) -m uv pip install --quiet --compile-bytecode --python $(PY)
endif

.DEFAULT_GOAL := help
.PHONY: help env test test-all smoke quickstart quickstart-short lint fixup clean

help:
	@sed -n '/^$$/q;s/^# \{0,1\}//p' Makefile

env: $(STAMP)

# Repeated whenever setup.py changes, in place: what fits is kept.
$(STAMP): setup.py
	test -x $(PY) || { $(CREATE); }
	$(INSTALL) -e '.[$(FAMILY),dev]'
ifeq ($(FAMILY),onedl)
	# mmcv-lite requires the upstream mmengine, which would overwrite onedl-mmengine.
	$(INSTALL) --no-deps mmcv-lite==2.2.0
endif
	# Its pins exclude every current onnx; of what it depends on, `deploy` has what it imports.
	$(INSTALL) --no-deps mmdeploy==1.3.1
	touch $@

test: env
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow" -n $(JOBS) $(PYTEST_ARGS)

test-all: env $(RTX)/.installed
	MMSEG_EOMT_TENSORRT_RTX=$(abspath $(RTX)) OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) $(PYTEST_ARGS)

# TensorRT-RTX parses and builds exported graphs without a GPU. In a folder of its own (230 MB, NVIDIA's
# licence). Pinned: each release may refuse other graphs, and this is the one they were built with.
# --no-build-isolation: its source package, a list of wheels, is built with the setuptools of `dev`.
$(RTX)/.installed: | env
	$(INSTALL) --no-build-isolation --target $(RTX) tensorrt-rtx==1.7.1.116
	touch $@

smoke: env
	OMP_NUM_THREADS=1 $(PY) -m pytest -m smoke $(PYTEST_ARGS)

quickstart: env
	$(PY) tools/quickstart.py $(QUICKSTART_ARGS)

quickstart-short: env
	$(PY) tools/quickstart.py --short $(QUICKSTART_ARGS)

lint: env
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

fixup: env
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf .venv .venv-onedl $(RTX) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
