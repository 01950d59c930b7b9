.DEFAULT_GOAL := help
.PHONY: help setup lint types unit test check portable sanitize mutants bench demo clean
SHELL := /bin/bash

# The first Python of 3.11 or newer that really starts; PYTHON=... overrides.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# The CUDA kernels take minutes to compile: built where they could run, unless CUDA=ON, OFF or AUTO says otherwise.
CUDA ?= $(if $(shell command -v nvidia-smi),AUTO,OFF)
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
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps \
		--config-settings=cmake.define.MMEBM_CUDA=$(CUDA) --editable .
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

check: setup portable sanitize mutants ## what takes minutes
	@# 5: no test is marked slow
	$(BIN)/python -m pytest -q -m slow || [ $$? -eq 5 ]

# The CPU kernels for 64-bit ARM, without the binding: they compile cleanly and, where an emulator is, compute the same.
AGREE := tests/csrc/agree.cpp $(wildcard csrc/cpu/*.cpp)
AGREE_FLAGS := -std=c++20 -O2 -Wall -Wextra -Werror -ffp-contract=off -fno-math-errno -fno-trapping-math -fopenmp \
	-Icsrc -DMMEBM_ISA=base
ARM := aarch64-linux-gnu
QEMU := $(shell command -v qemu-aarch64-static || command -v qemu-aarch64)

portable:
ifeq ($(shell command -v $(ARM)-g++),)
	@echo "not compiled for 64-bit ARM: there is no $(ARM)-g++"
else
	@mkdir -p build/portable
	$(ARM)-g++ $(AGREE_FLAGS) $(AGREE) -o build/portable/arm
ifeq ($(QEMU),)
	@echo "compiled for 64-bit ARM, not run: there is no qemu-aarch64"
else
	$(CXX) $(AGREE_FLAGS) $(AGREE) -o build/portable/here
	build/portable/here > build/portable/numbers
	$(QEMU) -L /usr/$(ARM) build/portable/arm build/portable/numbers
endif
endif

# $(call build_apart,FOLDER,COMPILER FLAGS,CMAKE OPTIONS): the module in a folder of its own, not installed.
define build_apart
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B $(1) -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
		-DCMAKE_CXX_FLAGS_RELWITHDEBINFO="$(2)" -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
		-Dpybind11_DIR="$$($(BIN)/python -m pybind11 --cmakedir)" -DMMEBM_CUDA=OFF $(3) > /dev/null
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build $(1)
endef

# The binding and its kernels under the address and undefined-behaviour sanitizers. What -fno-sanitize leaves out costs
# most of the compilation, and what it finds of wrong addresses the other finds too.
SANITIZED := build/sanitized
SANITIZE := -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all \
	-fno-sanitize=null,alignment,object-size,vptr,pointer-overflow
RUNTIME = $(foreach name,libasan libubsan libstdc++,$(shell $(CXX) -print-file-name=$(name).so))
# These limit or count what a process of their own takes.
ALIEN := scratch or starts_no_other

sanitize: setup
	$(call build_apart,$(SANITIZED),$(SANITIZE))
	LD_PRELOAD="$(RUNTIME)" ASAN_OPTIONS=detect_leaks=0:halt_on_error=1:allocator_may_return_null=1 \
		UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 MMEBM_SANITIZED="$$(echo $(SANITIZED)/_cpu.*.so)" \
		$(BIN)/python -m pytest -q -p tests.sanitized --capture=sys tests/kernels tests/csrc \
		-k "(cpu or native or csrc) and not ($(ALIEN))"

# Whether the sampler's proofs find bugs planted in the kernels, for this machine's instruction set alone.
MUTATED := build/mutants
ISA = $(shell $(BIN)/python -c 'from mmebm.kernels import native; print(native.build_info()["isas"][-1])')

mutants: setup
	$(call build_apart,$(MUTATED),-O2,-DMMEBM_MUTANTS=ON -DMMEBM_ISAS="base;$(ISA)")
	$(BIN)/python -m tests.statistics.mutants --build $(MUTATED)

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
