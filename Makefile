# Every target sets up what it needs; none needs root unless Python's venv module itself is missing.
SHELL := /bin/bash
PY ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FEED ?=

.PHONY: help setup demo show test simulate bench proto lint lock clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

setup: $(STAMP)  ## build .venv with everything the project needs

$(STAMP): requirements.lock pyproject.toml
	@$(PY) -c 'import sys; v=sys.version_info; sys.exit(0 if v >= (3,11) else f"Baton needs Python 3.11 or newer; {sys.executable} is {v.major}.{v.minor}. Install one and run: make PY=python3.11 $(MAKECMDGOALS)")'
	@$(PY) -c 'import ensurepip' 2>/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -q && apt-get install -qy python3-venv; \
	  else echo "Python's venv module is missing. Run: sudo apt install python3-venv"; exit 1; fi; }
	$(PY) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: setup  ## three nodes, one leader, on recorded or synthetic market data, until Ctrl-C [FEED=capture]
	@$(BIN)/baton demo $(if $(FEED),--feed $(FEED))

show: setup  ## the demo, broken in five ways in front of you, and judged [FEED=capture]
	@$(BIN)/baton demo --show $(if $(FEED),--feed $(FEED))

test: setup lint  ## the whole test suite
	$(BIN)/python -m pytest

simulate: setup  ## 100,000 simulated clusters, the kill matrix, and every order of events of a small one; in simulate-results/
	@$(BIN)/baton simulate --kill-matrix
	@$(BIN)/baton simulate --exhaustive
	@$(BIN)/baton simulate --seeds 0..100000

bench: setup  ## measure DESIGN.md 12 beside the alternatives; table and JSON in bench-results/
	@$(BIN)/baton bench

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

proto: setup  ## regenerate cluster/rpc from proto/
	@cd $(CURDIR) && $(BIN)/python -m grpc_tools.protoc -Icluster/rpc=proto \
	  --python_out=. --pyi_out=. --grpc_python_out=. $(patsubst proto/%,cluster/rpc/%,$(wildcard proto/*.proto))
	@cd $(CURDIR) && grep -L "^class" cluster/rpc/*_pb2_grpc.py | xargs -r rm  # of a file without a service

lock: ## resolve requirements.lock anew (needs pip-tools)
	$(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-emit-index-url --no-emit-trusted-host \
	  --no-emit-find-links --extra local --extra dev --output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) dist baton-data bench-results simulate-results .mypy_cache .ruff_cache .pytest_cache .hypothesis
