# Everything a fresh machine needs; PYTHON names the interpreter that makes .venv, 3.11 to 3.13.
PYTHON ?= python3
OUT ?= demo
WORKERS ?= 2
ARGS ?=

VENV := .venv
STAMP := $(VENV)/.install-stamp
RUN := $(VENV)/bin/python -m
# A limit on what could hang, where the machine has the program for it (macOS has not).
TIMEOUT := $(shell command -v timeout || command -v gtimeout)
within = $(if $(TIMEOUT),"$(TIMEOUT)" $(1))

NEW_ENOUGH := import sys; sys.version_info >= (3, 11) or sys.exit("mmdit needs Python 3.11 or newer, not %d.%d (%s); \
    try: make PYTHON=python3.12" % (sys.version_info[0], sys.version_info[1], sys.executable))

.PHONY: help install demo test lint types test-fast test-slow docs clean

help:
	@echo "make install    .venv with mmdit and all that developing it takes"
	@echo "make demo       make clips, encode, train, generate, score, report: into $(OUT)/"
	@echo "make test       ruff, mypy and the tests"
	@echo "make test-slow  the tests that take minutes"
	@echo "make docs       the pages of docs/, into build/site"
	@echo "make clean      remove what was built, the environment and caches, but not $(OUT)/"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(VENV)/bin/pip || { $(PYTHON) -c '$(NEW_ENOUGH)' && $(PYTHON) -m venv --clear $(VENV); }
	@$(VENV)/bin/python -c '$(NEW_ENOUGH)'
	$(RUN) pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(STAMP)

demo: install
	$(VENV)/bin/mmdit demo --out "$(OUT)" $(ARGS)

test: lint types test-fast

lint: install
	$(call within,120) $(RUN) ruff check .
	$(call within,120) $(RUN) ruff format --check .

types: install
	@rm -rf build/types && mkdir -p build/types/mmdit
	@cd build/types/mmdit && ln -s ../../../mmdit/* ../../../configs ../../../pipelines ../../../tools .
	$(call within,900) $(RUN) mypy

test-fast: install types lint
	$(call within,3600) $(RUN) pytest -n $(WORKERS) --dist loadfile $(ARGS)

test-slow: install
	$(call within,3600) $(RUN) pytest -m slow --timeout 1800 $(ARGS)

docs: install
	NO_MKDOCS_2_WARNING=1 $(call within,300) $(RUN) mkdocs build --strict
	@echo "look at build/site/index.html"

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
