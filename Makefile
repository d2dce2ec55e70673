# VLTune. `make demo` and `make test` do their own set-up on a fresh machine with Python 3.11 and git.
PYTHON ?= python3.11
JOB ?= fedmpt
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
SOURCES := custom lab tests jobs

.DEFAULT_GOAL := help
.PHONY: help setup demo poc test test-fast fuzz faults soak format check tables jobs report clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(STAMP) ## Create .venv with the exact pins of both lock files

$(STAMP): requirements.lock requirements-embedded.lock setup.cfg pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; install Python 3.11 or 3.12, or say make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-embedded.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $(STAMP)

demo: $(STAMP) ## Train FedMPT over four simulated sites on the embedded world
	$(BIN)/vltune demo

poc: $(STAMP) ## Run a job on a FLARE system of this machine; JOB=fedmpt, fedvlm or fedumm
	$(BIN)/vltune poc --job $(JOB)

test: $(STAMP) ## Every test but the marks gpu, soak and faults
	$(BIN)/python -m pytest -m "not gpu and not soak and not faults"

test-fast: $(STAMP) ## Unmarked tests only
	$(BIN)/python -m pytest -m "not slow and not flare and not gpu and not soak and not faults"

faults: $(STAMP) ## The fault matrix of docs/reliability.md on a POC
	$(BIN)/python -m pytest -m faults -s tests/faults

soak: $(STAMP) ## Five hundred rounds: memory must settle
	$(BIN)/python -m pytest -m soak -s tests/faults

FUZZ_SECONDS ?= 60
fuzz: $(STAMP) ## Fuzz the parsers of files, FUZZ_SECONDS (60) each, guided by coverage
	$(BIN)/python tests/vltune/fuzz_files.py --seconds $(FUZZ_SECONDS)

format: $(STAMP) ## Format the code
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

check: $(STAMP) ## What CI runs beside the tests: ruff, format, mypy, import stairs, README tables
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports --config setup.cfg
	$(BIN)/vltune bench tables --check

tables: $(STAMP) ## Rewrite the README's tables from benchmarks/results
	$(BIN)/vltune bench tables

jobs: $(STAMP) ## Export the jobs to build/jobs
	$(BIN)/python jobs/fedmpt/job.py --export --export-dir build/jobs
	$(BIN)/python jobs/fedvlm/job.py --export --export-dir build/jobs
	$(BIN)/python jobs/fedumm/job.py --export --export-dir build/jobs

clean: ## Remove the environment and everything generated
	rm -rf $(VENV) build runs .pytest_cache .mypy_cache .ruff_cache
