# Needs nothing but make and Python 3.11 or newer; each target makes what it lacks and is quick the second time.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
MODEL := build/models/SmolLM2-135M-Instruct.Q4_1.gguf
BUF_VERSION := 1.75.0
BUF := build/buf/$(BUF_VERSION)/node_modules/.bin/buf

say = @printf '\033[1m==> %s\033[0m\n' "$(1)"

.PHONY: help demo test lint protos install model

help: ## Say what can be made
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: install model ## Serve a real model with two unlike stage servers, under five minutes
	$(call say,running the demo)
	@$(PY) examples/demo/run.py

test: install model ## Run every test
	$(call say,running the tests)
	@$(PY) -m pytest -ra --durations=10

lint: install $(if $(shell command -v npm),$(BUF)) ## Check style, types, dependency rules and protos
	$(call say,ruff)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	$(call say,mypy)
	@$(VENV)/bin/mypy
	$(call say,import-linter)
	@$(VENV)/bin/lint-imports
	$(call say,buf)
	@if [ -x $(BUF) ]; then $(BUF) lint protos && echo "protos: no complaints"; \
	else echo "buf lint left out: npm is not installed (https://nodejs.org)"; fi

protos: install ## Generate llmpq/v1 from protos/
	$(call say,generating llmpq/v1)
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" python -m grpc_tools.protoc -I protos --python_out=. --grpc_python_out=. \
		--mypy_out=. --mypy_grpc_out=only_async:. protos/llmpq/v1/*.proto

install: $(INSTALLED) ## Make .venv with everything in it

model: $(MODEL) ## Fetch SmolLM2-135M-Instruct into build/models

$(INSTALLED): pyproject.toml hatch_build.py $(wildcard quantizer/native/*.h quantizer/native/*.cpp quantizer/native/build.py)
	$(call say,installing llmpq and its tools into $(VENV) (some minutes the first time))
	@[ -x $(PY) ] || { \
		for candidate in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
			"$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && found=$$candidate && break; \
		done; \
		[ -n "$${found:-}" ] || { echo "Python 3.11 or newer is needed; none was found (or say make PYTHON=/path/to/python)." >&2; exit 1; }; \
		"$$found" -m venv $(VENV); \
	}
	@$(PY) -m pip install -e '.[dev]'
	@touch $@

$(MODEL): | $(INSTALLED)
	$(call say,fetching the model)
	@$(PY) examples/fetch_smollm2.py

$(BUF):
	$(call say,installing buf $(BUF_VERSION))
	@npm install --no-fund --no-audit --no-save --prefix build/buf/$(BUF_VERSION) @bufbuild/buf@$(BUF_VERSION)
