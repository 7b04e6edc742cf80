# Every target makes what it needs: a fresh clone and Python 3.11 are enough.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test interop chaos bench lint clean
.DEFAULT_GOAL := help

help: ## what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "Python 3.11 or newer is needed, $(PYTHON) is %d.%d: make PYTHON=/path/to/python3.11" % v[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[embedded,http,dev]'
	@touch $@

demo: .venv/installed ## the whole system on this machine, against a simulated API
	@$(BIN)/janitor demo

# Fetched if it can be; without it the tests that need it are left out.
CLIENT = npm install --prefix tests/interop --no-package-lock --no-audit --no-fund --ignore-scripts --silent \
	--fetch-retries=0 --fetch-timeout=20000

test: .venv/installed ## every test: unit, integration, acceptance
	@test -d tests/interop/node_modules || $(CLIENT) >/dev/null 2>&1 || echo "no celery-node here: make interop is left out"
	$(BIN)/python -m pytest --numprocesses 4 --dist loadgroup

interop: .venv/installed ## a producer in another language (celery-node): needs node and npm
	$(CLIENT)
	$(BIN)/python -m pytest tests/interop

chaos: .venv/installed ## the long form of the chaos tests and the explorer, with the default settings: about an hour
	JANITOR_CHAOS=long $(BIN)/python -m pytest tests/chaos tests/explorer --numprocesses 2 --dist loadgroup -rP

.venv/bench-installed: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[embedded,dev,bench]'
	@touch $@

bench: .venv/bench-installed ## beside other queues, about half an hour; ONLY=throughput|enqueue|cleanup|ledger, OPTIONS='--scale 0.2'
	$(BIN)/python -m bench $(if $(ONLY),--only $(ONLY)) $(OPTIONS)

lint: .venv/installed ## ruff, mypy strict, import-linter, luacheck if it is installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.check_lua

clean: ## remove what was made
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
