# Two commands: `make study` runs the main job, `make test` passes the tests. Both set themselves up.
#
#   make study                 15 runs, report in studies/default          (PRESET=quick | default | full, SEEDS=+4 adds seeds)
#   make results               the published studies of docs/results, trained and measured again   (STUDIES="mnist fashion")
#   make bounds                how tight the bounds are, on the encoders of a study   (PRESET as above)
#   make test                  the tests, one process per core; a few minutes
#   make test-typed            the same, with the types and shapes of all arguments and results checked
#   make test-all              all of them, checked so, also those that take minutes or need Slurm or Ray
#   make coverage              the tests with the share of lines and branches that they reach
#   make gpu                   the checks that need a CUDA device
#   make check                 lint, format and types
#   make clean                 remove the environment; studies are kept

VENV ?= .venv
PRESET ?= default
OUT ?= studies/$(PRESET)
WORKERS ?= $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 2)
SEEDS ?=
PYTHON ?= $(shell command -v python3.12 >/dev/null 2>&1 && python3.12 -c 'pass' 2>/dev/null && echo python3.12 \
                || { command -v python3.11 >/dev/null 2>&1 && python3.11 -c 'pass' 2>/dev/null && echo python3.11; } \
                || echo python3)
PY := $(VENV)/bin/python

# Two contending threads make small operations many times slower; work is spread over processes instead.
export OMP_NUM_THREADS = 1
# Without compiled files every worker of the tests compiles, and checks the types of, the whole library anew.
unexport PYTHONDONTWRITEBYTECODE

# Whole files to one worker, in the order of tests/conftest.py: what a file's tests share is made once.
PYTEST = $(PY) -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# By jaxtyping and beartype, in every call: a third more time.
TYPED = --jaxtyping-packages=lipcomp,beartype.beartype

STUDIES ?=

.PHONY: study results bounds test test-typed test-all coverage gpu check setup clean
.DELETE_ON_ERROR:

study: $(VENV)/.study
	@$(PY) -m analyses.paired_study.design $(OUT)
	@$(PY) -m train.sweep $(PRESET) --out $(OUT) --workers $(WORKERS) $(if $(SEEDS),--seeds $(SEEDS))
	@$(PY) -m analyses.paired_study.measure $(OUT) --workers $(WORKERS)
	@$(PY) -m analyses.paired_study.report $(OUT)

results: $(VENV)/.study
	@$(PY) -m analyses.results run $(STUDIES) --workers $(WORKERS)

bounds: $(VENV)/.study
	@$(PY) -m analyses.bound_study.measure $(OUT) --workers $(WORKERS)
	@$(PY) -m analyses.bound_study.report $(OUT)

test: $(VENV)/.dev
	$(PYTEST) -m "not slow and not cuda" $(ARGS)

test-typed: $(VENV)/.dev
	$(PYTEST) $(TYPED) -m "not slow and not cuda" $(ARGS)

test-all: $(VENV)/.dev
	$(PYTEST) $(TYPED) -m "not cuda" $(ARGS)

coverage: $(VENV)/.dev
	$(PYTEST) -m "not slow and not cuda" --cov=lipcomp --cov-branch --cov-report=term:skip-covered $(ARGS)

gpu: $(VENV)/.dev
	$(PY) -m pytest -q -m cuda $(ARGS)

check: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

setup: $(VENV)/.dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "lipcomp needs Python 3.11 or newer; found $$($(PYTHON) --version). Name one: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.study: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[study]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.study

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
