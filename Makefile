# The front door. `make help` lists what there is.
PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
RESULTS ?= results
SUITE   ?= quick
JOBS    ?=
ALGO    ?= iql
DATASETS ?=
TRIALS  ?= 40
PINS    := pyproject.toml constraints.txt
PIP     := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# A file of tests stays in one process, so that what its tests share is made once.
TESTS   := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev bench tune report speed test test-slow test-all notebooks docs lint format clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{ printf "  make %-11s %s\n", $$1, $$2 }'
	@echo
	@echo "  make bench SUITE=quick SEEDS=5 ALGOS=\"iql bc\" DATASETS=\"hoard/pendulum/mixed-v0\" SET=\"updates=2000\" JOBS=2"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hoard needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; try make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# A stamp for each kind of installation: the second call has nothing to do until the pins change.
$(VENV)/.installed: $(PINS) | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(PINS) | $(BIN)/python
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-docs $(VENV)/.installed-tune

$(VENV)/.installed-docs: $(PINS) | $(BIN)/python
	$(PIP) -e '.[docs]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-tune: $(PINS) | $(BIN)/python
	$(PIP) -e '.[tune]'
	@touch $@ $(VENV)/.installed

setup: $(VENV)/.installed ## virtual environment with pinned packages (bench does it by itself)

setup-dev: $(VENV)/.installed-dev

bench: setup ## run a suite, skip what is finished, print the table (SUITE SEEDS ALGOS DATASETS SET JOBS RESULTS)
	@$(BIN)/hoard bench $(SUITE) --results $(RESULTS) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(ALGOS),--algos $(ALGOS)) \
	  $(if $(DATASETS),--datasets $(DATASETS)) $(if $(SET),--set $(SET)) $(if $(JOBS),--jobs $(JOBS))

tune: $(VENV)/.installed-tune ## search options of ALGO with Optuna, test the winner (DATASETS TRIALS SET SEEDS JOBS RESULTS)
	@$(BIN)/hoard tune $(ALGO) $(or $(DATASETS),hoard/pendulum/mixed-v0) --trials $(TRIALS) --results $(RESULTS) \
	  $(if $(SEEDS),--seeds $(SEEDS)) $(if $(SET),--set $(SET)) $(if $(JOBS),--jobs $(JOBS))

report: setup ## rebuild tables, figures and report.html of SUITE
	@$(BIN)/hoard report $(SUITE) --results $(RESULTS)

speed: setup ## updates per second of each algorithm, and how near to the hardware (ALGOS RESULTS; docs/speed.md)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/speed.py --json $(RESULTS)/speed.json $(if $(ALGOS),--algos $(ALGOS))

test: setup-dev ## the tests, without the slow ones
	$(TESTS)

test-slow: setup-dev ## full-size data and learning checks
	$(TESTS) -m slow

test-all: test test-slow ## both

notebooks: setup-dev ## execute the notebooks, with their outputs into results/notebooks
	$(BIN)/python -m hoard.analysis.notebooks.execute

docs: $(VENV)/.installed-docs ## build the site into build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "build/site/index.html"

lint: setup-dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy hoard
	PYTHONPATH=. $(BIN)/lint-imports

format: setup-dev ## let ruff rewrite the layout of the code
	$(BIN)/ruff check --fix-only -q .
	$(BIN)/ruff format .

clean: ## remove the environment and caches; results and datasets stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
