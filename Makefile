# `make quickstart` trains on real images and draws pictures; `make test` runs the suite.
# Both make .venv from pyproject.toml under constraints.txt (which pins torch).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_DIR ?= runs/quickstart
ICONS ?= data/icons_64
TRAIN_ARGS ?=
WORKERS ?= auto

.PHONY: quickstart test lint types clean

quickstart: $(VENV)/.installed-quickstart
	$(BIN)/simple-diffusion data build icons $(ICONS) --size 64 --validation 0.05
	$(BIN)/simple-diffusion train configs/quickstart.yaml --run_dir $(RUN_DIR) --data.path=$(ICONS) $(TRAIN_ARGS)

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

$(VENV)/.installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
