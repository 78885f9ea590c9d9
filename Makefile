# make check: lint and test. make demo: from mock objects to a trained network, in minutes.
# Needs Python 3.11 or later, make and a C compiler; everything else is installed into .venv.

PYTHON ?= python3
DEMO_DIR ?= demo
DEMO_OBJECTS ?= 1200
BENCH_DIR ?= bench-data
# Files of all contestants are to fit in memory: 13 GB of them; disk: as much.
RACE ?= --minutes 12 --mock 768
RACE_OTHERS ?= --minutes 9
PYTEST_ARGS ?=
# Files of tests run side by side; each is one after the other in itself.
PYTEST_JOBS ?= 2

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt
# Console scripts, and the mpiexec of the mpich wheel, come from the venv.
RUN := PATH="$(BIN):$$PATH"

.PHONY: help venv demo test lint docs format bench race check clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo    mock objects to shards to a trained network, with rates ($(DEMO_DIR)/)'
	@echo 'make check   lint and test'
	@echo 'make test    all tests; PYTEST_ARGS="-k tar -x" narrows them'
	@echo 'make lint    ruff, mypy, prose, docs;  make format  lets ruff rewrite'
	@echo 'make docs    the pages of docs/ as a site, into build/site'
	@echo 'make race    our loader and its peers, into benchmarks/results/ (half an hour, 14 GiB)'
	@echo 'make bench   benchmarks, into benchmarks/results/ (half an hour, 17 GiB)'
	@echo 'make venv    only the virtual environment;  make clean  removes what make made'

venv: $(STAMP)

# torch by itself and first: see constraints.txt.
$(STAMP): setup.py constraints.txt $(wildcard msdata/core/*.c)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "$(PYTHON) is missing or older than 3.11, so nothing can be installed; run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) has no ensurepip, so it can make no virtual environment; install it (Debian: apt-get install python3-venv) or run make PYTHON=/path/to/another/python3" >&2; exit 1; }
	@echo 'Installing into $(VENV) (once; minutes)'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) torch
	@$(PIP) --editable '.[all,dev]'
	@$(BIN)/python -c 'import msdata.core._stream_fill' 2>/dev/null || \
	  echo 'note: msdata/core/stream_fill.c was not compiled (no C compiler, or no Python.h: Debian python3-dev), so the loader reads with preadv, more slowly' >&2
	@touch $@

demo: $(STAMP)
	@$(RUN) python -m benchmarks demo --dir '$(DEMO_DIR)' --objects $(DEMO_OBJECTS)

test: $(STAMP)
	@$(RUN) python -m pytest -n $(PYTEST_JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS); \
	code=$$?; \
	if [ $$code -eq 1 ]; then \
	  failed=$$($(RUN) python -c 'import json; print(*json.load(open(".pytest_cache/v/cache/lastfailed")), sep="\n")'); \
	  echo 'What failed side by side is tried once more, by itself:'; \
	  $(RUN) python -m pytest --last-failed --last-failed-no-failures none $(PYTEST_ARGS); code=$$?; \
	  [ $$code -ne 0 ] || printf '\nFLAKY, to be fixed: passed only by itself, failed side by side:\n%s\n' "$$failed"; \
	fi; exit $$code

lint: $(STAMP) docs
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy
	@$(RUN) python -m pytest --quiet --no-header tests/test_prose.py

# --strict: a broken link or reference fails; with --quiet it would not, since warnings are not counted.
docs: $(STAMP)
	@NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict

format: $(STAMP)
	@$(RUN) ruff check --fix .
	@$(RUN) ruff format .

bench: $(STAMP)
	@$(RUN) python -m benchmarks rates --data '$(BENCH_DIR)'

# Half an hour on two cores that have nothing else to do; the same command resumes one that was interrupted.
race: $(STAMP)
	@$(RUN) python -m benchmarks loaders --out benchmarks/results $(RACE)
	@$(RUN) python -m benchmarks loaders --out benchmarks/results --workload stamps --mock 1536 $(RACE_OTHERS)
	@$(RUN) python -m benchmarks loaders --out benchmarks/results --workload large --mock 80 $(RACE_OTHERS)
	@$(RUN) python -m benchmarks report benchmarks/results

check: lint test

clean:
	rm -rf $(VENV) build dist msdata.egg-info msdata/core/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find msdata mstrain benchmarks tests -name __pycache__ -prune -exec rm -rf {} +
