# make quickstart  a first run; needs Python 3.11+ and pip only
# make test        all tests but the slow ones
# make test-fast   the same without whole runs
# make test-slow   the slow ones
# make check       lint, format, types; CI runs this before the tests

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# One file stays on one worker; files of whole runs come first (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: quickstart test test-fast test-slow check clean

quickstart: $(VENV)/.installed-base
	$(BIN)/python configs/quickstart.py

test: $(VENV)/.installed-test
	$(PYTEST)

test-fast: $(VENV)/.installed-test
	$(PYTEST) -m "not loop and not slow and not gpu and not tpu and not network and not parity"

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Each extra holds those before it, so that CI installs once.
$(VENV)/.installed-base: pyproject.toml | $(BIN)/python
	$(PIP) -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	$(PIP) -e ".[test]"
	touch $(VENV)/.installed-base $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(PIP) -e ".[dev]"
	touch $(VENV)/.installed-base $(VENV)/.installed-test $@

clean:
	rm -rf $(VENV)
