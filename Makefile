# Every target makes what it needs: a fresh clone and Python 3.11 are enough.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --quiet --disable-pip-version-check
T = tests

.PHONY: demo test test-servers coverage interop chaos bench lint format reference docs constraints sbom image test-confined clean
.DEFAULT_GOAL := help

help: ## list what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

# The dependencies are checked against their hashes. The project itself has none: pip cannot hash a folder.
.venv/installed: pyproject.toml constraints-dev.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "Python 3.11 or newer is needed, $(PYTHON) is %d.%d: make PYTHON=/path/to/python3.11" % v[:2])'
	$(PYTHON) -m venv .venv
	$(PIP) install --require-hashes --requirement constraints-dev.txt
	$(PIP) install --no-deps --editable .
	@touch $@

demo: .venv/installed ## show the whole system on this machine, against a simulated API
	@$(BIN)/janitor demo

# Fetched if it can be; without it the tests that need it are left out.
CLIENT = npm install --prefix tests/interop --no-package-lock --no-audit --no-fund --ignore-scripts --silent \
	--fetch-retries=0 --fetch-timeout=20000
PYTEST = pytest --numprocesses 6 --dist loadgroup $(T) $(OPTIONS)

test: .venv/installed ## run every test, or some: T=tests/unit, T=tests/unit/test_x.py, OPTIONS='-k name'
	@test -d tests/interop/node_modules || $(CLIENT) >/dev/null 2>&1 || echo "no celery-node here: make interop is left out"
	$(BIN)/python -m $(PYTEST)

test-servers: .venv/installed ## run the tests that meet a server with several, by default all here: SERVERS='/usr/bin/redis-server ...'
	$(BIN)/python -m tests.on_servers $(SERVERS) -- $(OPTIONS)

coverage: .venv/installed ## run the tests (T as above) and show which lines they leave out, subprocesses included
	@rm -rf .coverage && mkdir .coverage
	$(BIN)/coverage run -m $(PYTEST)
	@$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

interop: .venv/installed ## let a producer in another language (celery-node) ask: needs node and npm
	$(CLIENT)
	$(BIN)/python -m pytest tests/interop

chaos: .venv/installed ## run the long form of the chaos tests and the explorer, with the default settings: about an hour
	CHAOS=long $(BIN)/python -m pytest tests/chaos tests/explorer --numprocesses 2 --dist loadgroup -rP

.venv/bench-installed: .venv/installed constraints-bench.txt
	$(PIP) install --require-hashes --requirement constraints-bench.txt
	@touch $@

bench: .venv/bench-installed ## compare with other queues, and measure what sizing needs, about 45 minutes; ONLY=throughput|enqueue|cleanup|memory|accounts|records|ledger, OPTIONS='--scale 0.2'
	$(BIN)/python -m bench $(if $(ONLY),--only $(ONLY)) $(OPTIONS)

lint: .venv/installed ## run ruff, mypy strict, import-linter, luacheck if it is installed; check docs/reference
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.check_lua
	$(BIN)/python docs/generate.py --check

format: .venv/installed ## format the code and make the corrections that ruff can make
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

reference: .venv/installed ## write docs/reference from the code
	$(BIN)/python docs/generate.py

.venv/docs-installed: .venv/installed constraints-docs.txt
	$(PIP) install --require-hashes --requirement constraints-docs.txt
	@touch $@

docs: .venv/docs-installed ## build docs/ as a site, in the folder site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The newest versions that pyproject.toml accepts, for every Python from 3.11 on. UPGRADE= keeps those that are pinned.
UPGRADE = --upgrade
COMPILE = .venv/uv/bin/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-annotate $(UPGRADE)
DEV := --extra embedded --extra http --extra flower --extra dev

constraints: .venv/installed ## pin all dependencies anew, with hashes, after a change in pyproject.toml
	$(PYTHON) -m venv .venv/uv
	.venv/uv/bin/pip install --quiet --disable-pip-version-check uv
	$(COMPILE) $(DEV) --extra bench --output-file constraints-bench.txt
	$(COMPILE) $(DEV) --constraint constraints-bench.txt --output-file constraints-dev.txt
	$(COMPILE) --extra http --constraint constraints-bench.txt --output-file constraints-run.txt
	$(COMPILE) --extra http --extra flower --constraint constraints-bench.txt --output-file constraints-flower.txt
	$(COMPILE) --extra docs --constraint constraints-bench.txt --output-file constraints-docs.txt

sbom: ## list what the image installs, with versions and hashes, as CycloneDX: dist/sbom.json
	$(PYTHON) -m venv .venv/sbom
	.venv/sbom/bin/pip install --quiet --disable-pip-version-check 'cyclonedx-bom>=7,<8'
	@mkdir -p dist
	.venv/sbom/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
		--output-file dist/sbom.json constraints-run.txt

DOCKER = docker
TAG = finetune-janitor
image: ## build the container image; BASE=... on another base, DOCKER=podman, TAG=...
	$(DOCKER) build --tag $(TAG) $(if $(BASE),--build-arg BASE=$(BASE)) \
		--build-arg VERSION=$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) \
		--build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown) $(OPTIONS) .

test-confined: .venv/installed ## run the image and the systemd units' commands confined as they are: root, podman, debootstrap or BASE=...
	BASE=$(BASE) CHAOS=long $(BIN)/python -m pytest tests/integration/test_image.py tests/integration/test_units.py \
		-rsP $(OPTIONS)

clean: ## remove what was made
	rm -rf .venv build dist site .coverage .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
