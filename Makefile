# trajkit: `make demo` runs the main job on real data, `make test` the tests. Both set up .venv.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
WORK ?= /tmp

.PHONY: demo test test-all lint types check docs bench bench-gpu clean

demo: $(READY)
	$(BIN)/python examples/demo.py

test: $(READY)
	$(BIN)/python -m pytest -q -n auto

test-all: $(READY)
	TRAJKIT_TEST_PROFILE=large $(BIN)/python -m pytest -q -n auto -m "slow or not slow"

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

check: lint types test

docs: $(READY)
	$(BIN)/python docs/make_reference.py

bench: $(READY)
	$(BIN)/python benchmarks/run_all.py --work $(WORK)

# needs torch, triton and numpy alone: use any Python that has them, PYTHON=python3
bench-gpu:
	PYTHONPATH=. $(PYTHON) benchmarks/bench_gpu.py

$(READY): pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf .venv build dist demo-out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
