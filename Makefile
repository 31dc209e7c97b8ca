# Two commands set everything up on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
# tflite-runtime ended with CPython 3.11 and numpy 1: it lives in an environment of its own.
TFLITE_VENV ?= .venv-tflite
BIN := $(VENV)/bin
OUT ?= dist

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export SHUFFLECTL_TFLITE_PYTHON ?= $(abspath $(TFLITE_VENV))/bin/python

.PHONY: help venv packages demo test lint format wheel-test docs-tables clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

venv: $(VENV)/.dev $(TFLITE_VENV)/.installed  ## make the environments for development

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else f"shufflectl needs Python 3.11 or newer, and $(PYTHON) is {v[0]}.{v[1]}: call make PYTHON=/path/to/python3.11")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "this Python cannot make environments: on Debian and Ubuntu, apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.runtime: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all]'
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

$(TFLITE_VENV)/.installed: $(VENV)/.python constraints-tflite.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "tflite-runtime exists for Python 3.11 at the newest: its tests will be skipped")' \
	  && $(PYTHON) -m venv $(TFLITE_VENV) \
	  && $(TFLITE_VENV)/bin/python -m pip install --quiet -r constraints-tflite.txt \
	  || mkdir -p $(TFLITE_VENV)
	@touch $@

demo: $(VENV)/.runtime  ## the main job, offline: export the bundled trained model to all targets and check it
	$(BIN)/shufflectl export shufflenet_v2_x0_5 --weights digits --target all --images all --out $(OUT)
	$(BIN)/shufflectl check $(OUT)

packages:  ## install what the tests drive and Debian has (adb, a C compiler, Chromium); needs root
	@scripts/test_packages.sh

test: venv packages  ## the test suite
	$(BIN)/python -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/.dev  ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.dev  ## format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

wheel-test: venv packages  ## build the wheel, install it into an environment of its own, run the tests against it
	PYTHON=$(PYTHON) scripts/test_wheel.sh $(BIN)

clean:  ## remove environments and what was built
	rm -rf $(VENV) $(TFLITE_VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
