# `make demo` runs the main job, `make test` the tests; each first installs what it needs into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test nightly lint types docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py --output_dir outputs/demo

# Tests write and remove many files: in memory, where it has 4 GB for them, and only those of failed tests are kept.
MEMORY = $(shell df --output=avail /dev/shm 2>/dev/null | awk 'NR == 2 && $$1 > 4e6 {print "TMPDIR=/dev/shm"}')

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(MEMORY) $(BIN)/python -m pytest -n 2 --dist worksteal -o tmp_path_retention_policy=failed

nightly: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "nightly or fault"

lint: $(VENV)/.installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/python -m mypy

# The site is written to outputs/site. Strict: a warning, such as a broken link, is an error.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# torch first and by version: a range would bring a build with gigabytes of CUDA where a smaller one is at hand.
$(VENV)/.installed: setup.py constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "latentia needs Python >= 3.11, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,track]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) outputs build dist src/latentia.egg-info
