# Needs make, git and a Python (3.11 or newer) that can make virtual environments; everything else goes into .venv.
# Another Python: make PYTHON=python3.12 ...

PYTHON ?= python3
WORKERS ?= 2
BENCH_OUT ?= tests/benchmarks
BIN := .venv/bin
STAMP := .venv/installed
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo up env test e2e compose-e2e sbom chaos bench-gpu console check openapi fmt clean

help: ## Show this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile | while IFS="$$(printf '\t')" read -r name text; do \
	    printf '  make %-11s %s\n' "$$name" "$$text"; done

demo: $(STAMP) ## Start everything, run one job on sample pictures, leave its files in out/, stop
	@$(BIN)/duolora demo

up: $(STAMP) ## Start the service and keep it running (where the data lives: .venv/bin/duolora up --help)
	@$(BIN)/duolora up

# Idle threads of the arithmetic sleep: spinning ones slow their neighbours many times over.
test: $(STAMP) ## Run all tests against real servers
	@$(BIN)/python -m tests.console.browser
	OMP_WAIT_POLICY=passive $(BIN)/pytest -n $(WORKERS) --dist loadgroup

env: ## Write .env for docker compose, with new secrets; deploy/README.md tells the rest
	@$(PYTHON) -m deploy.environment_file

e2e: export DUOLORA_E2E_URL = $(BASE_URL)
e2e: export DUOLORA_E2E_API_KEY = $(API_KEY)
e2e: export DUOLORA_E2E_WEBHOOK_HOST = $(WEBHOOK_HOST)
e2e: export DUOLORA_E2E_WEBHOOK_SECRET = $(WEBHOOK_SECRET)
e2e: export DUOLORA_E2E_OTHER_API_KEY = $(OTHER_API_KEY)
e2e: $(STAMP) ## Run the end-to-end tests on a running installation: make e2e BASE_URL=... API_KEY=...
	@test -n "$(BASE_URL)" || { echo 'make e2e BASE_URL=http://... API_KEY=duo_...; more in deploy/README.md' >&2; exit 2; }
	@$(BIN)/pytest -rs tests/e2e

compose-e2e: export DUOLORA_COMPOSE = 1
compose-e2e: $(STAMP) ## Build the images, run docker-compose.yml, test it end to end, take it down; needs a Docker engine
	@$(BIN)/pytest --durations=10 tests/compose

sbom: ## Write build/sbom-api.json and build/sbom-worker.json: the Python packages of the images, as CycloneDX
	@mkdir -p build
	docker compose --profile sbom build sbom
	for image in api worker; do docker compose run --rm -T sbom $$image/bin/python >build/sbom-$$image.json || exit 1; done

chaos: $(STAMP) ## Break everything 200 times and see that nothing is lost; writes tests/chaos/REPORT.md
	$(BIN)/python -m tests.chaos --seed 1 --jobs 60 --faults 200

# make bench-gpu BENCH_OUT=folder; sections by themselves: .venv/bin/python -m tests.benchmarks.gpu --help
bench-gpu: $(STAMP) ## Check and time SDXL's shapes and its rivals on one GPU; writes tests/benchmarks/gpu.md and .json
	$(BIN)/python -m tests.benchmarks.gpu --out $(BENCH_OUT)

console: $(STAMP) ## Build the web console anew; needs Node.js 20.19 or newer, which nothing else does
	npm --prefix api/console/web ci
	npm --prefix api/console/web run check
	npm --prefix api/console/web run build
	$(BIN)/python -m tests.console.build_stamp

check: $(STAMP) ## Check format, lint, types, directions of import, container files, names that must not be there, known holes
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	sh .ci/names
	sh .ci/containers $(BIN)
	sh .ci/audit $(BIN)/python $(dir $(STAMP))audited

openapi: $(STAMP) ## Write api/openapi.json, the description of the HTTP interface
	$(BIN)/python -m api.openapi

fmt: $(STAMP) ## Format the code and mend what the linter can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

setup: $(STAMP) ## Make .venv with the pinned dependencies (all others do it when needed)

clean: ## Remove .venv, caches, out/ and the demo's data
	rm -rf .venv out .duolora build api/console/web/node_modules *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and by itself: whatever else asks for it then finds the pinned one in place.
$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo 'DuoLoRA needs Python 3.11 or newer; name one: make PYTHON=python3.12 ...' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo 'This Python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo 'Installing into .venv: torch, the largest part ...'
	@$(PIP) --quiet pip
	@$(PIP) "$$(grep '^torch==' constraints.txt)"
	@echo 'Installing into .venv: everything else ...'
	@$(PIP) --quiet --editable '.[all]' --group dev
	@touch $@
