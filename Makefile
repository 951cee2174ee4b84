PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/installed  ## the main job on the embedded corpus: baseline, exclusive, selective, both
	$(BIN)/exsel compare --out runs/demo --overwrite

test: .venv/installed  ## the test suite, a process a core, each with one thread: more would wait for each other
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses=logical --maxprocesses=8 --dist=worksteal

lint: .venv/installed  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python benchmarks/tables.py --check

clean:
	rm -rf .venv runs
