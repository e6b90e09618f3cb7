# demur: set up, show, test, check, measure. Every target sets itself up first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup demo test check bench clean

help:
	@echo "make setup   .venv with everything that the other targets need"
	@echo "make demo    the miniature study: some minutes on two cores"
	@echo "make test    all tests"
	@echo "make check   format, lint, types, import rules, tests"
	@echo "make bench   speed and memory, side by side with what one would use instead"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[train,serve,ray,inspect,data,dev]'
	touch $(STAMP)

demo: setup
	$(BIN)/demur run studies/mini.yaml --out runs/mini
	@echo "The page: $(CURDIR)/runs/mini/report.html"

test: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

bench: setup
	@for script in benchmarks/*.py; do case $$script in *_gpu.py) ;; *) echo "== $$script"; $(BIN)/python $$script || exit 1;; esac; done

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache
