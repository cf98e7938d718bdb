# One command a verb. The environment is made once, in VENV, and again when pyproject.toml or the checkout changes.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
TEST_ARGS := --numprocesses logical --maxprocesses 4 --no-loadscope-reorder

BIN := $(VENV)/bin
DIGEST := $(shell { cat pyproject.toml; pwd; } | $(PYTHON) -c \
	'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest()[:16])')
STAMP := $(VENV)/.ray_sisa-$(DIGEST)
# cifar100_core is a study rather than a benchmark: it needs data and a folder for its results, so it is run by hand.
BENCHMARKS := $(filter-out benchmarks/_% benchmarks/cifar100_core.py,$(wildcard benchmarks/*.py))

.PHONY: help env demo test test-all check bench paper clean

help: ## list the verbs
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

env: $(STAMP) ## make the environment in VENV (default .venv) with PYTHON (3.11 to 3.13)

# The stamp is written last: an environment whose making was cut short has none, and is completed by the next call.
$(STAMP):
	$(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/.ray_sisa-*
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(STAMP) ## train, forget and prove it, on this machine
	$(BIN)/ray-sisa demo

# One process a core, four at most; those that start Ray clusters share one, see tests/conftest.py.
test: $(STAMP) ## run the tests; PYTEST_ARGS adds arguments
	$(BIN)/python -m pytest $(TEST_ARGS) -m "not cloud and not smoke" $(PYTEST_ARGS)

# Those on Azurite are skipped unless AZURITE names its program: `npm install --prefix DIR azurite`.
test-all: $(STAMP) ## run these, studies and benchmarks at small sizes, and the tests on servers of other clouds
	$(BIN)/python -m pytest $(TEST_ARGS) $(PYTEST_ARGS)

check: $(STAMP) ## formatting, lint, types and the contracts between modules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(STAMP) ## run every benchmark
	@set -e; for benchmark in $(BENCHMARKS); do echo "== $$benchmark"; $(BIN)/python $$benchmark; done

# From the newest record of each study; a test says whether a page is what its record gives.
paper: $(STAMP) ## write docs/study-*.md from the newest records of the studies
	$(BIN)/python -m ray_sisa.study.paper $(lastword $(sort $(wildcard results/*-study-cifar100-*/result.json))) \
		docs/study-cifar100.md
	$(BIN)/python -m ray_sisa.inversion_study.paper $(lastword $(sort $(wildcard results/*-study-inversion-*/result.json))) \
		docs/study-inversion.md

clean: ## remove caches, build products and .venv; never runs or data
	rm -rf .venv build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
