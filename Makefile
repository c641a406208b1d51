# Works from a fresh clone with Python >= 3.11 (with venv and pip) and nothing else.
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	$$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made-from-pyproject
OLDEST ?= .venv-oldest
OLDEST_STAMP = $(OLDEST)/.made-from-$(shell cksum < pyproject.toml | tr ' ' '-')
TESTS ?= not slow and not gpu
# Test files side by side, a core each; the tests of a file share models. A crash ends the run.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(os.cpu_count() or 1, 8))')
PYTEST = LDM_OFFLINE=1 HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(1)/python -m pytest -n $(WORKERS) --dist loadfile --max-worker-restart 0 -m "$(TESTS)"

.PHONY: help venv fetch demo test test-all test-oldest wheel test-wheel mutants emoji-styles docs lint format
.DEFAULT_GOAL := help

help:  ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

venv: $(STAMP)  ## make .venv with all that is needed (5-6 GB, mostly torch)

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 found; install one, or run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --progress-bar on -e '.[dev]'
	@touch $@

fetch: $(STAMP)  ## get the pretrained networks into ~/.cache/ldm (240 MB)
	$(BIN)/python -m ldm.pretrained

demo: $(STAMP)  ## pictures from the shipped model, then both stages trained briefly: outputs/demo/index.html
	$(BIN)/python -m ldm.pretrained
	$(BIN)/python scripts/demo.py --out outputs/demo

test: $(STAMP)  ## all quick tests, on the CPU and offline
	$(BIN)/python -m ldm.pretrained
	$(call PYTEST,$(BIN))

test-all: $(STAMP)  ## the slow tests and those for a GPU too
	$(BIN)/python -m ldm.pretrained
	LDM_OFFLINE=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

mutants: $(STAMP)  ## break every promise, and the code at random, in a scratch copy; names what no test notices (hours)
	$(BIN)/python -m ldm.pretrained
	$(BIN)/python tests/mutants

test-oldest: $(OLDEST_STAMP)  ## the quick tests with the oldest release of each dependency, in .venv-oldest
	$(OLDEST)/bin/python -m ldm.pretrained
	$(call PYTEST,$(OLDEST)/bin)

$(OLDEST_STAMP): | $(STAMP)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(OLDEST)
	$(BIN)/uv pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct \
		--only-binary :all: --no-binary antlr4-python3-runtime --no-binary ldm-toolkit -e '.[dev]'
	@touch $@

wheel: $(STAMP)  ## dist/ldm_toolkit-VERSION-py3-none-any.whl, with the shipped model and the configs
	$(BIN)/uv build --wheel --out-dir dist

test-wheel: $(STAMP)  ## the wheel alone, in an empty folder, with the packages that it requires and no others
	$(BIN)/python -m ldm.pretrained
	$(BIN)/python .ci/wheel.py

emoji-styles: $(STAMP) data/emoji-styles  ## the model to come: both stages on drawings in eight styles (hours; the same command resumes)
	$(BIN)/python -m ldm.pretrained
	$(BIN)/python scripts/train_vae.py --config configs/vae/emoji-styles-f4.yaml
	$(BIN)/python scripts/train_ldm.py --config configs/ldm/emoji-styles.yaml

data/emoji-styles: | $(STAMP)
	$(BIN)/python scripts/prepare_data.py emoji-styles --out $@

docs: $(STAMP)  ## the site of README, docs, benchmarks and reference: outputs/docs/docs/index.html
	$(BIN)/python -m sphinx -q -W --keep-going -c docs -b html . outputs/docs
	@echo "the site is in outputs/docs/docs/index.html"

lint: $(STAMP)  ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
