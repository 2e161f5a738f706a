# `make demo` runs the main job, `make test` the tests; each sets up all that it needs in .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test nightly lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py --output_dir outputs/demo

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

nightly: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "nightly or fault"

lint: $(VENV)/.installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

# torch first and by version: a range would bring a build with gigabytes of CUDA where a smaller one is at hand.
$(VENV)/.installed: setup.py constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "latentia needs Python >= 3.11, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,track]'
	touch $@

clean:
	rm -rf $(VENV) outputs build dist src/latentia.egg-info
