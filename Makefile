# make demo: set up, train the default experiment, predict photos it has not seen
# make test: set up, run the tests            make lint: format, lint, types
# make bench: the speed comparisons, small ones, half an hour on two cores: docs/performance.md
# make audit: known vulnerabilities of what is installed; fails where that cannot be told
PYTHON ?= python3
BIN := .venv/bin
# In this mode installed Hydra plugins and the configs are found from the checkout.
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt --config-settings editable_mode=compat

.PHONY: demo test lint audit bench format clean

demo: .venv/.demo
	$(BIN)/python train.py
	$(BIN)/binventory prepare data.reader.seed=1 data.reader.num_bins=200 layout=imagefolder output=.cache/unseen
	$(BIN)/python predict.py run=$$(ls -d outputs/train/*/ | tail -n 1) input=.cache/unseen/test

test: .venv/.dev
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

audit: .venv/.dev
	$(BIN)/python .ci/audit.py

bench: .venv/.dev
	$(BIN)/python benchmarks/loading.py
	$(BIN)/python benchmarks/training.py --photos 128 --epochs 1 --rounds 3
	$(BIN)/python benchmarks/time_to_accuracy.py
	$(BIN)/python benchmarks/starting.py --rounds 3
	$(BIN)/python benchmarks/steps.py
	$(BIN)/python benchmarks/frozen.py --photos 100 --epochs 3
	$(BIN)/python benchmarks/memory.py 10000 100000
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/compare.py

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/.python:
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "binventory needs Python 3.11, 3.12 or 3.13: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv .venv || { echo "no venv module: apt install python3-venv"; exit 1; }
	touch $@

.venv/.demo: .venv/.python pyproject.toml constraints.txt
	@echo "installing into .venv (a few GB with torch, some minutes)"
	$(INSTALL) --editable .
	touch $@

.venv/.dev: .venv/.python pyproject.toml constraints.txt
	@echo "installing into .venv (a few GB with torch, some minutes)"
	$(INSTALL) --editable '.[dev]'
	touch .venv/.demo $@

clean:
	rm -rf .venv outputs .cache
