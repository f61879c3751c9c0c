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
MUTANTS := .cache/mutants

export PYTHONUNBUFFERED := 1
export PYTHONDONTWRITEBYTECODE :=  # what dozens of processes import is compiled once

.DEFAULT_GOAL := help
.PHONY: install install-with-pip demo test-fast test test-again test-clients test-frameworks check docs dist package-check audit bench bench-full bench-micro bench-compare chaos soak fuzz mutants format format-check lint type sync-client data worker redis browser clean help

install: $(PARSERS)  ## make .venv with the router and the tools to work on it

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make install PYTHON=python3.11")'
	@test ! -L $(VENV) || { echo "$(VENV) is a link, and would be emptied: make install where it leads"; exit 1; }
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

test-fast: $(INSTALLED)  ## run what needs no download and no SGLang, in a minute and a half
	@SLIME_ROUTER_FUZZ=0.2 $(PYTEST) -m "not (slow or sglang or parsers or tokenizers or browser or redis)"

test: install data worker redis  ## run all tests: real vocabularies, real SGLang
	@$(PYTEST) --require-all

test-again:  # one by one, what has failed: a few may have met a machine that was busy
	@$(BIN)/python -m tests.again

test-clients: install data  ## hold conversations through real SDKs, agent frameworks and agents
	@$(BIN)/python -m tests.clients.environment
	@$(BIN)/python -m tests.clients.node
	@$(PYTEST) tests/clients

test-frameworks: install data  ## roll out an episode by the code of real trainers
	@$(BIN)/python -m tests.frameworks.environment
	@$(PYTEST) tests/frameworks

check: format-check lint type test  ## check format, lint and types, and run all tests

docs: $(INSTALLED)  ## build the site of the documentation in .cache/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

dist: $(INSTALLED)  ## build the wheel and the source distribution in dist/
	@rm -rf dist
	@$(BIN)/python -m hatchling build

package-check: dist  ## install what was built on each supported Python, and use it
	@$(BIN)/python -m tests.package.check dist

audit: $(INSTALLED)  ## look for known holes in what is installed
	@$(BIN)/python -m tests.package.audit

bench: install  ## measure, and print a table: three minutes
	@$(BIN)/python -m benchmarks

bench-full: install  ## measure everything, beside other gateways; writes docs/performance.md's part
	@$(BIN)/python -m benchmarks.full --page

bench-micro: install  ## measure the pure parts of a request, one by one
	@$(BIN)/python -m pytest -p no:cacheprovider -p no:randomly --benchmark-only \
		--benchmark-columns=median,iqr,rounds benchmarks/micro/test_pure.py

bench-compare: install  ## compare the router's CPU time with another commit's: BASE=commit
	@$(BIN)/python -m benchmarks.compare $(BASE)

chaos: install  ## kill, hang and break workers, ten times as long as `make test` does
	@SLIME_ROUTER_CHAOS=10 $(BIN)/python -m pytest tests/chaos

soak: install  ## storms and leaving clients for twenty minutes: nothing may grow
	@$(BIN)/python -m tests.chaos.soak

fuzz: install  ## run the property tests, and those of every route, fifty times as long
	@SLIME_ROUTER_FUZZ=50 $(BIN)/python -m pytest --timeout 7200 tests/properties tests/integration/test_fuzz.py

mutants: $(MUTANTS)/bin/mutmut  ## break cache, pool and trajectory in every small way: which does no test notice?
	@SLIME_ROUTER_FUZZ=0.2 nice -n 10 $(MUTANTS)/bin/mutmut run --max-children $(JOBS) $(ONLY)
	@$(MUTANTS)/bin/mutmut results | grep -v "not checked" || echo "mutants: each was noticed"

$(MUTANTS)/bin/mutmut: $(INSTALLED)  # beside the project's environment, whose packages it sees
	@$(BIN)/python -m venv --clear $(MUTANTS)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
		"$$($(MUTANTS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	@$(MUTANTS)/bin/python -m pip --disable-pip-version-check -qq install "mutmut==3.8.1"

format: install  ## write all code in the one format
	@$(BIN)/ruff format $(CODE)
	@$(BIN)/ruff check --fix $(CODE)

format-check: install
	@$(BIN)/ruff format --check $(CODE)

lint: install  ## find mistakes and bad habits
	@$(BIN)/ruff check $(CODE)

type: install  ## check the types
	@$(BIN)/mypy

sync-client: $(INSTALLED)  ## write the blocking client again, from the awaiting one
	@$(BIN)/python -m tests.twins

data: $(INSTALLED)  # real vocabularies and chat templates
	@$(BIN)/python -m tests.vocabularies

browser: $(INSTALLED)  # Chromium, from the system's packages: only the tests of the dashboard need it
	@$(BIN)/python -m tests.dashboard.chromium

redis: $(INSTALLED)  # a server for the tests of a shared store, where the system has none
	@$(BIN)/python -m tests.redis_server

worker: install  # the worker's own environment, and its tiny models
	@$(BIN)/python -m tests.sglang.server prepare

clean:  ## remove all that these commands made
	@rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks dist mutants
	@find . -name __pycache__ -prune -exec rm -rf {} +

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
