# Every target sets up what it needs: Python 3.11+ with its venv module is all there has to be.
PYTHON ?= python3
VENV ?= .venv
# More for pytest, for example ARGS="-k rounds"; tests wait for disks and processes half of the time, so two files run at once,
# in the order of their names: the longest are then not the last, when one of the two has nothing left to do.
ARGS ?=
# Which benchmarks; all of them where none is named.
NAMES ?=

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-input --constraint constraints.txt
# The demo installs no development tools, so that a newcomer waits less; the development stamp includes the demo's packages.
DEMO := $(VENV)/.installed-demo
DEV := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo serve test soak examples bench bench-peers reference check format lint types imports dependencies migrations-check clean

help:  ## Says what can be made
	@echo 'make TARGET, where TARGET is'
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 22

demo: $(DEMO)  ## Ten clients train a network on real MNIST over HTTP
	@$(BIN)/fedquorum demo

serve: $(DEMO)  ## Runs a server on SQLite at 127.0.0.1:8080
	@$(BIN)/fedquorum serve

test: $(DEV)  ## Runs the tests (ARGS="..." goes to pytest)
	@command -v chromium >/dev/null || echo 'note: no chromium on the path: the test of the docs page cannot run (Debian: apt-get install chromium)'
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

soak: $(DEV)  ## Runs the tests that take many minutes
	$(BIN)/python -m pytest -m soak $(ARGS)

examples: $(DEV)  ## Runs the examples that take minutes (ARGS="-k attackers" picks one)
	$(BIN)/python -m pytest -m soak tests/docs/test_examples.py $(ARGS)

bench: $(DEV)  ## Measures, as ratios to what the machine can do (NAMES="fold upload" picks some)
	$(BIN)/python -m benchmarks $(NAMES)

bench-peers: $(DEV) $(VENV)-flower/.installed  ## Measures the robust strategies beside Flower, which gets an environment of its own
	FEDQUORUM_BENCH_FLOWER=$(VENV)-flower/bin/python $(BIN)/python -m benchmarks robust_strategies

check: lint types imports dependencies migrations-check test  ## What CI runs

format: $(DEV)  ## Rewrites the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(DEV)
	$(BIN)/mypy

imports: $(DEV)
	$(BIN)/lint-imports

dependencies: $(DEV)
	$(BIN)/deptry .

migrations-check: $(DEV)
	$(BIN)/python scripts/check_migrations.py

reference: $(DEV)  ## Writes docs/api-reference from the docstrings
	$(BIN)/python scripts/make_reference.py

clean:  ## Removes the virtual environment and the tools' caches
	rm -rf $(VENV) $(VENV)-flower build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .schemathesis

$(VENV)/pyvenv.cfg:
	@command -v $(PYTHON) >/dev/null || { echo 'FedQuorum needs Python 3.11 or newer, and there is no $(PYTHON). Debian: apt-get install python3 python3-venv' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "FedQuorum needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo '$(PYTHON) has no venv module. Debian: apt-get install python3-venv' >&2; exit 1; }
	@echo 'Making a virtual environment in $(VENV) ...'
	@$(PYTHON) -m venv --clear $(VENV)

$(VENV)-flower/.installed: benchmarks/peers/flower.txt | $(VENV)/pyvenv.cfg
	@echo 'Installing Flower into $(VENV)-flower ...'
	@$(PYTHON) -m venv --clear $(VENV)-flower
	@$(VENV)-flower/bin/python -m pip install -qq --disable-pip-version-check --no-input --requirement benchmarks/peers/flower.txt
	@touch $@

$(DEMO): $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	@echo 'Installing FedQuorum with PyTorch into $(VENV): a minute or two the first time ...'
	@$(PIP_INSTALL) --editable '.[demo]'
	@touch $@

$(DEV): $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	@echo 'Installing FedQuorum with PyTorch and the development tools into $(VENV): a few minutes the first time ...'
	@$(PIP_INSTALL) --editable '.[demo,postgres,objects,dpsgd,examples,dev]'
	@touch $(DEMO) $@
