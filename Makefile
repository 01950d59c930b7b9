.DEFAULT_GOAL := help
.PHONY: help setup lint types unit test check bench demo clean
SHELL := /bin/bash

# The first Python of 3.11 or newer that really starts; PYTHON=... overrides.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
DEPS := .venv/.deps.stamp
# An editable install knows modules by file: a new or moved one needs it anew.
MODULES := $(shell find kernels mmebm -name '*.py' | sort | cksum | cut -d' ' -f1)
NATIVE := .venv/.native-$(MODULES).stamp
NATIVE_SOURCES := CMakeLists.txt pyproject.toml $(shell find csrc -type f)
OVERLAY := build/overlay
PEERS := build/peers

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 8

setup: $(NATIVE) ## .venv with the pinned packages and an editable build; does nothing twice

$(DEPS): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 found; install one or set PYTHON=" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement constraints.txt
	@touch $@

$(NATIVE): $(DEPS) $(NATIVE_SOURCES)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	$(BIN)/python -m pip check --quiet
	@touch $@

lint: setup ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## mypy over mmebm and mmebm.kernels
	@# mypy follows no editable finder: show it the installed layout.
	@rm -rf $(OVERLAY) && mkdir -p $(OVERLAY)/mmebm
	@ln -s $(CURDIR)/mmebm/* $(OVERLAY)/mmebm/ && ln -s $(CURDIR)/kernels $(OVERLAY)/mmebm/kernels
	cd $(OVERLAY) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache

unit: setup ## pytest without the slow tests
	$(BIN)/python -m pytest -q

test: lint types unit ## what every change must pass

check: setup ## what takes minutes
	@# 5: no test is marked slow
	$(BIN)/python -m pytest -q -m slow || [ $$? -eq 5 ]

$(PEERS)/.stamp: $(DEPS) bench-constraints.txt
	rm -rf $(PEERS)
	$(BIN)/python -m pip install --quiet --no-deps --target $(PEERS) --requirement bench-constraints.txt
	@touch $@

bench: setup $(PEERS)/.stamp ## measure what bench/results/cpu.csv lacks, against other libraries too
	$(BIN)/python -m bench run
	$(BIN)/python -m bench report

demo: setup ## see it work
	$(BIN)/mmebm demo

clean: ## remove .venv, builds and caches
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
