# `make` alone prints the targets. What needs Python packages sets up .venv by itself.

PYTHON ?= python3
BIN := .venv/bin
DEMO_READY := .venv/.demo-ready
READY := .venv/.ready
WORK ?= /tmp
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint types check resolve fresh docs bench bench-gpu clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(DEMO_READY) ## the main job on the real run in data/, judged by checkpoints it was not shown
	$(BIN)/python examples/demo.py

test: $(READY) ## the tests (pytest, all cores)
	$(BIN)/python -m pytest -q -n auto

test-all: $(READY) ## the tests, with those that take minutes and with more random cases
	TRAJKIT_TEST_PROFILE=large $(BIN)/python -m pytest -q -n auto -m "slow or not slow"

lint: $(READY) ## ruff: format and rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY) ## mypy --strict
	$(BIN)/mypy

check: lint types test ## lint, types and tests

resolve: $(READY) ## do the pinned versions fit together on an ordinary machine? a dry run of pip
	$(BIN)/python .ci/resolve.py

fresh: ## install into a venv of its own, without extras, and run the three commands there
	$(PYTHON) .ci/fresh.py

docs: $(READY) ## write docs/cli.md from the commands' help
	$(BIN)/python docs/make_reference.py

bench: $(READY) ## the benchmarks, a quarter of an hour; WORK=folder for its files
	$(BIN)/python benchmarks/run_all.py --work $(WORK)

# any Python with torch, triton and numpy will do: PYTHON=python3
bench-gpu: ## the GPU kernels' benchmarks; PYTHON=python with torch, triton and numpy
	PYTHONPATH=. $(PYTHON) benchmarks/bench_gpu.py

# The demo needs what `pip install trajkit` brings; the tests need torch as well, which is large.
$(DEMO_READY): pyproject.toml constraints.txt
	@echo "setting up .venv for the demo: about 120 MB to download; torch is not needed"
	test -d .venv || $(PYTHON) -m venv .venv
	$(PIP_INSTALL) --editable .
	@touch $@

$(READY): pyproject.toml constraints.txt
	@echo "setting up .venv for the tests: about 3 GB to download on Linux, since torch brings CUDA"
	@echo "(0.7 GB with a CPU build of torch: install that into .venv first)"
	test -d .venv || $(PYTHON) -m venv .venv
	$(PIP_INSTALL) --editable '.[dev]'
	$(PIP_INSTALL) --editable '.[eval]' \
	  || echo "lm-eval could not be installed: tests/test_evaluation.py will be skipped"
	@touch $@ $(DEMO_READY)

clean: ## remove .venv and everything that was built
	rm -rf .venv build dist demo-out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
