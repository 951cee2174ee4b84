PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint reproduce survey bench docs package clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/installed  ## the main job on the embedded corpus, in six minutes: baseline, exclusive, selective, both
	$(BIN)/exsel compare --minutes 6 --out runs/demo --overwrite

# One thread a process: more would wait for each other. Bytecode is written even where the environment forbids it: without
# it each program that a test starts compiles torch and transformers from their source, which takes it 10 seconds.
test: .venv/installed  ## the test suite, a process a core
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/pytest --numprocesses=logical --maxprocesses=8 --dist=worksteal

reproduce: .venv/installed  ## the papers' experiments again, on a CPU by default: make reproduce NAME=bias
	$(BIN)/python -m evidence reproduce $(NAME) $(FLAGS)

survey: .venv/installed  ## every model type of transformers, upgraded and verified
	$(BIN)/python -m evidence survey --json evidence/benchmarks/results/support_transformers$$($(BIN)/python -c 'import transformers; print(transformers.__version__)').json

bench: .venv/installed  ## what attention, a block and upgraded models cost here; about an hour and a half on two cores
	$(BIN)/python -m evidence.benchmarks.attention
	$(BIN)/python -m evidence.benchmarks.decode
	$(BIN)/python -m evidence.benchmarks.block
	$(BIN)/python -m evidence.benchmarks.upgrade_overhead
	$(BIN)/python -m evidence.benchmarks.long

package: .venv/installed  ## wheel and source distribution, into dist; the wheel is tried with torch alone
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python tests/check_package.py dist

lint: .venv/installed  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m evidence.benchmarks.tables --check

docs: .venv/installed-docs  ## the site, into build/site: a folder of pages that need no server
	$(BIN)/mkdocs build

.venv/installed-docs: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[docs]'
	touch $@

clean:
	rm -rf .venv build dist runs
