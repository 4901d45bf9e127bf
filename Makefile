# Two commands do everything on a fresh machine: `make demo` and `make test`. Both build .venv first.
PYTHON ?= python3
BIN := .venv/bin
SHELL := /bin/bash

.PHONY: help venv demo test slow check format bench docs wheel pocket clean

help:  ## what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

venv: .venv/ready  ## the environment, with the tested versions

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: venv  ## edit one fact of the bundled model: demo/*.safetensors, demo/*.png
	$(BIN)/python examples/demo.py demo

test: venv  ## the tests (no network, no GPU, minutes)
	$(BIN)/python -m pytest -m 'not slow'

slow: venv  ## the slow tier: kills, clusters, benchmarks
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray,docs,build]'
	$(BIN)/python -m pytest -m slow

check: venv  ## format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

format: venv  ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: venv  ## seconds, memory and ratios: benchmarks/
	$(BIN)/python -m benchmarks

docs: venv  ## the documentation as a site: build/site/index.html
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

wheel: venv  ## the package as a wheel: dist/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[build]'
	rm -rf build/lib build/bdist.*
	$(BIN)/python -m build --wheel --no-isolation

pocket: venv  ## train the bundled model again (hours)
	$(BIN)/python -m pocket

clean:
	rm -rf .venv demo build dist *.egg-info
