# Two commands for a new user: `make quickstart` and `make test`. For a change: `make check` first, then `make test`.
# All set up a virtual environment first.
# PIP_ARGS is passed on to pip; PYTHON names the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_ARGS ?=

.PHONY: setup quickstart test check lint docs hashes soak bench clean

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock requirements.hashes pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; name another: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "error: no venv module; on Debian or Ubuntu: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps -r requirements.hashes
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r requirements.lock # torch, which has none
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation $(PIP_ARGS) -e .
	@touch $@

quickstart: setup
	$(BIN)/python -m pipeline run train --recipe quickstart

test: setup
	$(BIN)/python -m pytest tests -n 3 --dist loadfile --no-loadscope-reorder

# Lint, types and the tests that take seconds: a minute on 2 cores, 3 the first time, without mypy's cache.
check: lint
	$(BIN)/python -m pytest tests -m "not slow and not soak" -n 3 --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The page that is generated from the code: every command and every key.
docs: setup
	page=$$($(BIN)/python -m pipeline schema reference) && printf '%s\n' "$$page" > docs/reference.md

# The hashes of all files of each version in requirements.lock, for pip to compare. Needs uv: pip install uv.
hashes:
	uv pip compile requirements.lock --universal --python-version 3.11 --no-deps --generate-hashes --no-annotate \
	  --no-header --no-emit-package torch --quiet --output-file requirements.hashes

soak: setup
	$(BIN)/python -m pytest tests -m soak

# Peers that the benchmarks run beside us are installed for them alone: an extra, not part of the lock file.
BENCHMARKS := filter near curate stages encode bpe pack reader driver ray_share scale step wait levers golf gpu
bench: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation $(PIP_ARGS) -e ".[bench]"
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

clean:
	$(BIN)/python -m pipeline clean
