# make help: what there is to do
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo-$(shell date +%Y%m%d-%H%M%S)
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check format bench peers clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/installed  ## make .venv and install adlight into it (about 100 s and 6 GB the first time)

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "adlight needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: setup  ## train three detectors on generated images (CPU, about 3 minutes); a table, and a page with pictures
	$(BIN)/adlight train -m model=retrieval,mae_small,pca dataset=synthetic trainer=cpu hydra.sweep.dir=$(DEMO)
	$(BIN)/adlight report runs=$(DEMO)

test: setup  ## run the tests
	$(BIN)/python -m pytest

test-slow: setup  ## run the slow tests too
	$(BIN)/python -m pytest -m ''

check: setup  ## lint, format and types, as pre-commit does
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## let ruff fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## measure speed and memory on this machine, into experiments/speed/
	$(BIN)/python experiments/speed/bench.py

peers: setup .venv-peers/installed  ## the same work by anomalib and by adlight, into experiments/peers/ (6.4 GB, an hour)
	$(BIN)/python experiments/peers/compare.py

.venv-peers/installed: | setup
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check 'torch==$(shell $(BIN)/python -c 'import torch; print(torch.__version__.split("+")[0])')' torchvision
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check 'anomalib[cpu]'
	@touch $@

clean:  ## remove caches and build files; .venv, runs and data stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
	find adlight tests experiments -name __pycache__ -type d -prune -exec rm -rf {} +
