# make run: makes a virtual environment, installs, and makes a model (BUDGET=4m RECIPE=smoke NAME=mine to choose).
# make test: installs the test tools and passes every check and test.
# make peers: installs the programs that models are compared with, each in an environment of its own under .peers.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH_VERSION := 2.13.0
TORCH := torch==$(TORCH_VERSION)
PYTORCH_CPU := https://download.pytorch.org/whl/cpu

RECIPE ?= default
BUDGET ?=
NAME ?=
PEERS := $(patsubst peers/%.txt,%,$(wildcard peers/*.txt))
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.PHONY: run test check slow peers peers-test docs clean
.DELETE_ON_ERROR:

run: $(VENV)/.installed
	$(BIN)/athanor run $(RECIPE) $(if $(BUDGET),--budget $(BUDGET)) $(if $(NAME),--name $(NAME))

test: check
	$(BIN)/python -m pytest -q -m "not slow and not peers" -rs

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -m "slow and not peers" -rs

peers: $(PEERS:%=.peers/%/.installed)

peers-test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -m peers -rs

docs: $(VENV)/.installed-test
	$(BIN)/pip install -q -c constraints.txt -e ".[docs]" --config-settings editable_mode=compat
	$(BIN)/mkdocs build --strict

# A Linux machine without an NVIDIA GPU must not fetch gigabytes of CUDA: PyTorch's own index has a CPU build. Where that
# index cannot be reached, the configured one serves.
define install-cpu-torch
@if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then \
  $(1)/pip install -q --no-deps --timeout 5 --retries 0 --index-url $(PYTORCH_CPU) $(TORCH) 2>/dev/null || true; \
fi
endef

$(VENV)/.torch-$(TORCH_VERSION):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Athanor needs Python 3.11 or newer: make run PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(call install-cpu-torch,$(BIN))
	$(BIN)/pip install -q -c constraints.txt $(TORCH)
	@touch $@

$(VENV)/.installed: $(VENV)/.torch-$(TORCH_VERSION) pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e ".[corpus]" --config-settings editable_mode=compat
	@$(BIN)/python -c "from athanor.engine.native.library import library; library()" 2>/dev/null || true
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install -q -c constraints.txt -e ".[corpus,test]" --config-settings editable_mode=compat
	@touch $@

# Its file says in its first lines what installing it takes.
.peers/%/.installed: peers/%.txt
	@sed -n 's/^# //p' $<
	$(PYTHON) -m venv .peers/$*
	$(if $(shell grep -x '$(TORCH)' $<),$(call install-cpu-torch,.peers/$*/bin))
	.peers/$*/bin/pip install -q -r $<
	@touch $@

clean:
	rm -rf $(VENV) .peers build dist *.egg-info site
