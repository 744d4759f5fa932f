# What people and CI both run. Every target makes the environment first if it is missing or stale.

SHELL := bash
# The interpreter that .venv is made from is never .venv's own, also where that is activated.
PYTHON ?= $(shell PATH="$${PATH//$(CURDIR)\/.venv\/bin:/}"; command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.8
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
# Torch, Beam and transformers are compiled once and not by every process, also where the environment forbids it.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help venv demo engines test coverage models losses test-engines test-chaos check bench docs lock clean

help:
	@echo "make demo   the whole path on what the repository ships: corpus, teacher, cache, three students, a table"
	@echo "make test   the tests; with CI=true every model class of transformers. Engines and stores apart"
	@echo "make coverage  the same, and how much of the code they reach (half as slow again)"
	@echo "make models write docs/models.md anew: which model classes work (minutes)"
	@echo "make losses write docs/losses.md anew from the entries"
	@echo "make engines       fetch Prism, Flink, MinIO, a GCS emulator and another transformers into .engines (needs go, mvn, java)"
	@echo "make test-engines  the tests that run on them"
	@echo "make test-chaos    kill -9 again and again, full disks, two runs at once"
	@echo "make check  ruff, mypy, import-linter"
	@echo "make bench  the benchmarks; one table of their ratios, with the aims and what falls short"
	@echo "make docs   the site, in docs/_build/html; Sphinx is put into .venv-docs"
	@echo "make venv   the environment alone; the others make it by themselves"
	@echo "make lock   compile requirements.lock again from setup.py"

venv: $(VENV)/.stamp

# The environment is whole when the stamp is there: the lock's packages, and this project beside them.
$(VENV)/.stamp: requirements.lock setup.py
	@command -v $(PYTHON) >/dev/null || { echo "teachonce needs $(PYTHON): say make PYTHON=/path/to/python3.11" >&2; exit 2; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

demo: venv
	$(BIN)/python examples/demo.py

# Two processes of one thread each: tests take the next that nobody has, and stay beside those of their file.
TWO := -n 2 --dist worksteal
test coverage models test-engines test-chaos: export OMP_NUM_THREADS ?= 1

# Every model class of transformers takes minutes: CI tries all, people ten families of each task.
FEW := $(if $(CI),, and not architectures)

test: venv
	$(BIN)/python -m pytest tests $(TWO) -m "not engines and not chaos$(FEW)"

# Half as slow again as the tests alone, so apart: it must be 90%.
coverage: venv
	$(BIN)/python -m pytest tests $(TWO) -m "not engines and not chaos$(FEW)" --cov --cov-report=term:skip-covered

engines: venv
	$(BIN)/python tests/engines/fetch.py

models: venv
	$(BIN)/python -m tests.architectures.table

losses: venv
	$(BIN)/python -m tests.trainer.losses.table

test-engines: venv
	$(BIN)/python -m pytest tests/engines -n 2 --dist loadfile --no-loadscope-reorder -m engines --durations=0

test-chaos: venv
	$(BIN)/python -m pytest tests/chaos $(TWO) -m chaos --durations=0

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: venv
	$(BIN)/python benchmarks/every.py

# Sphinx has an environment of its own, and sees the project's packages behind its own.
.venv-docs/.stamp: docs/requirements.txt $(VENV)/.stamp
	rm -rf .venv-docs
	$(PYTHON) -m venv .venv-docs
	$(BIN)/uv pip install --quiet --python .venv-docs/bin/python -r docs/requirements.txt
	$(BIN)/python -c "import site; print('$(CURDIR)', *site.getsitepackages(), sep='\n')" > \
	  "$$(.venv-docs/bin/python -c 'import site; print(site.getsitepackages()[0])')/zz-project.pth"
	touch $@

docs: .venv-docs/.stamp
	.venv-docs/bin/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

lock: venv
	$(BIN)/uv pip compile --quiet setup.py --all-extras --python-version 3.11 -c constraints.txt \
	  --no-annotate --no-header -o requirements.lock

clean:
	rm -rf $(VENV) .venv-docs docs/_build demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage*
