# `make demo` and `make test` need Python >= 3.11 and make; everything else goes into .venv.
# A stamp file per environment means that a second run installs nothing again.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt
INPUTS := pyproject.toml constraints.txt cascadellm/_version.py

.PHONY: help demo test check format matrix bench chaos docs clean

help:
	@echo "make demo    run the example cascade in both frameworks (first run installs)"
	@echo "make test    run the whole test suite (first run installs)"
	@echo "make check   lint, formatting, types, import contracts"
	@echo "make matrix  install each extra alone and the oldest supported frameworks"
	@echo "make bench   run every benchmark in its quick form"
	@echo "make chaos   fault and load tests in full size"
	@echo "make docs    build the documentation"
	@echo "make clean   remove everything that make built"

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later was not found; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(INPUTS) | $(BIN)/python
	$(PIP) -e ".[demo]"
	@touch $@

# the test environment contains the demo's
$(VENV)/test.stamp: $(INPUTS) | $(BIN)/python
	$(PIP) -e ".[test]"
	@touch $(VENV)/demo.stamp $@

$(VENV)/docs.stamp: $(INPUTS) | $(BIN)/python
	$(PIP) -e ".[docs]"
	@touch $@

demo: $(VENV)/demo.stamp
	$(BIN)/cascadellm demo

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests/typing
	$(BIN)/lint-imports

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

matrix: $(VENV)/test.stamp
	$(BIN)/python tests/packaging/matrix.py

bench: $(VENV)/test.stamp
	@for script in benchmarks/*.py; do \
		grep -q -- '--quick' $$script || continue; \
		echo "== $$script"; $(BIN)/python $$script --quick || exit 1; done

chaos: $(VENV)/test.stamp
	CASCADE_CHAOS=full $(BIN)/python -m pytest -m chaos --timeout 1800

docs: $(VENV)/docs.stamp
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) .venv-matrix build dist site cascade-demo .pytest_cache .mypy_cache .ruff_cache \
		.import_linter_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
