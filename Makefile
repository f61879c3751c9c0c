# Every command that people and CI run. Nothing is installed outside .venv and .cache.

PYTHON ?= python3
JOBS ?= 2  # processes that run tests
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed-from-pyproject
PARSERS := $(VENV)/.parsers-installed
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
UV := $(BIN)/python -m uv pip install --quiet --python $(BIN)/python
PYTEST = $(BIN)/python -m pytest --numprocesses $(JOBS)
CODE := slime_router benchmarks examples tests

export PYTHONUNBUFFERED := 1
export PYTHONDONTWRITEBYTECODE :=  # what dozens of processes import is compiled once

.DEFAULT_GOAL := help
.PHONY: install install-with-pip demo test-fast test test-clients check dist package-check bench chaos fuzz format format-check lint type data worker clean help

install: $(PARSERS)  ## make .venv with the router and the tools to work on it

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make install PYTHON=python3.11")'
	@echo "install: making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)
	@echo "install: the router, its dependencies and the tools (about a minute)"
	@$(PIP) install "uv==0.13.8"
	@$(UV) --editable . --group dev || $(MAKE) --no-print-directory install-with-pip
	@touch $@

$(PARSERS): $(INSTALLED) slime_router/cli/install_parsers.py
	@$(BIN)/python -m slime_router install-parsers
	@touch $@
	@echo "install: done; try 'make demo', or $(BIN)/python -m slime_router --help"

install-with-pip:  # uv asks the index itself, whatever pip was told of others
	@echo "install: uv could not; pip does it"
	@$(PIP) install "pip>=25.1"  # the first that knows dependency groups
	@$(PIP) install --editable . --group dev

demo: install  ## hold a conversation through the router with a real SGLang on this CPU
	@$(BIN)/python -m tests.sglang.demo

test-fast: $(INSTALLED)  ## run what needs no download and no SGLang, in about a minute
	@$(PYTEST) -m "not slow and not sglang"

test: install data worker  ## run all tests: real vocabularies, real SGLang
	@$(PYTEST) --require-all

test-clients: install data  ## hold conversations through real SDKs, agent frameworks and agents
	@$(BIN)/python -m tests.clients.environment
	@$(BIN)/python -m tests.clients.node
	@$(PYTEST) tests/clients

check: format-check lint type test  ## what CI runs

dist: $(INSTALLED)  ## build the wheel and the source distribution in dist/
	@rm -rf dist
	@$(BIN)/python -m hatchling build

package-check: dist  ## install what was built on each supported Python, and use it
	@$(BIN)/python -m tests.package.check dist

bench: install  ## measure, and print a table
	@$(BIN)/python -m benchmarks

chaos: install  ## kill, hang and break workers, ten times as long as `make test` does
	@SLIME_ROUTER_CHAOS=10 $(BIN)/python -m pytest tests/chaos

fuzz: install  ## run the property tests fifty times as long
	@SLIME_ROUTER_FUZZ=50 $(BIN)/python -m pytest tests/properties

format: install  ## write all code in the one format
	@$(BIN)/ruff format $(CODE)
	@$(BIN)/ruff check --fix $(CODE)

format-check: install
	@$(BIN)/ruff format --check $(CODE)

lint: install  ## find mistakes and bad habits
	@$(BIN)/ruff check $(CODE)

type: install  ## check the types
	@$(BIN)/mypy

data: $(INSTALLED)  # real vocabularies and chat templates
	@$(BIN)/python -m tests.vocabularies

worker: install  # the worker's own environment, and its tiny models
	@$(BIN)/python -m tests.sglang.server prepare

clean:  ## remove all that these commands made
	@rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks dist
	@find . -name __pycache__ -prune -exec rm -rf {} +

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
