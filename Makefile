# Two commands do everything on a fresh machine: `make demo` and `make test`. Both build .venv first.
PYTHON ?= python3
BIN := .venv/bin
SHELL := /bin/bash
NEWER := import sys; sys.exit(sys.version_info < (3, 11))

.PHONY: help venv demo studio test slow check format bench docs wheel pocket clean

help:  ## what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

venv: .venv/ready  ## the environment, with the tested versions

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c '$(NEWER)' || { echo "refact needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python && $(BIN)/python -c '$(NEWER)' || rm -rf .venv
	@echo "the environment is made in .venv: torch and the other libraries, a few minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: venv  ## edit one fact of the bundled model: demo/*.safetensors, demo/*.png
	$(BIN)/python examples/demo.py demo

studio: venv  ## a page in the browser on which facts are tried, seen, kept and shared
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ui]'
	$(BIN)/refact studio

test: venv  ## the tests (no network, no GPU, minutes)
	$(BIN)/python -m pytest -m 'not slow'

slow: venv  ## the slow tier: kills, clusters, benchmarks
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray,ui,docs,build]'
	command -v chromium chromium-browser google-chrome > /dev/null || ! command -v apt-get > /dev/null || \
	  { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium > /dev/null; } || \
	  echo "no Chromium could be installed: the studio's browser tests are skipped"
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
