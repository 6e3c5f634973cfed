# Every target does all of its set-up by itself. `make` alone lists them.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.set-up

# The first of these that is a Python from 3.10 to 3.13; `make setup PYTHON=/path/to/python` names one.
CANDIDATES := python3 python3.13 python3.12 python3.11 python3.10
SUITABLE := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
PYTHON := $(firstword $(foreach name,$(CANDIDATES),$(shell $(name) -c '$(SUITABLE)' 2>/dev/null && command -v $(name))))

.DEFAULT_GOAL := help
.PHONY: help setup demo test style quality lock clean

help:  ## List the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

setup: $(STAMP)  ## Make the virtual environment .venv and install into it, where that is not done yet

# torch goes in first and alone: whatever build of the locked version pip finds is the one that all the rest is met with.
$(STAMP): requirements-lock.txt pyproject.toml
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(SUITABLE)' 2>/dev/null || { \
		echo "llmkit needs Python 3.10 to 3.13, and '$(or $(PYTHON),$(firstword $(CANDIDATES)))' is not one."; \
		echo "Install one, or name it: make setup PYTHON=/path/to/python3"; exit 1; } >&2
	@$(BIN)/python -c '$(SUITABLE)' 2>/dev/null && $(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		echo "making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv --clear $(VENV); }
	$(PIP) install --constraint requirements-lock.txt torch
	$(PIP) install --requirement requirements-lock.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

demo: $(STAMP)  ## Raw text to a report on a sentiment classifier: `llmkit run sentiment`
	$(BIN)/llmkit run sentiment

test: $(STAMP)  ## Run every test
	$(BIN)/python -m pytest

style: $(STAMP)  ## Format the code and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

quality: $(STAMP)  ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

lock:  ## Resolve requirements-lock.txt anew; needs Python 3.10 to 3.13
	$(PYTHON) .ci/lock.py

clean:  ## Remove .venv, caches and builds; results in runs/ stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
