# Every target creates what it needs in .venv; only Python >= 3.11 and make are assumed.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := sidecar control_plane trust tests
SIM ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lab check format bench gen sim mutants compose-smoke clean setup

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "egm needs Python 3.11 or newer on PATH"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

setup: $(STAMP) ## create .venv with everything development needs

demo: $(STAMP) ## the tour (quorum, governed calls, attestation, partition, a lying node); then a service climbs levels 0 to 5
	$(BIN)/egm demo
	$(BIN)/egm demo --climb

test: $(STAMP) ## every test but the long ones of `lab` (under 10 minutes on 2 cores)
	$(BIN)/python -m pytest -n 4 --dist loadgroup -m "not lab"

lab: $(STAMP) ## the long scenarios of the lab, on real processes, which `test` leaves out (minutes)
	$(BIN)/python -m pytest -n 2 -m lab

check: $(STAMP) ## format, lint, types, import contracts, generated code is current
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python proto/generate.py --check

format: $(STAMP) ## rewrite the sources in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

gen: $(STAMP) ## regenerate proto/gen from proto/egm
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python proto/generate.py

bench: $(STAMP) ## measure decision latency and proxy cost, write docs/performance.md
	$(BIN)/python -m tests.benchmarks

sim: $(STAMP) ## deterministic simulation until told to stop (Ctrl-C); bounds: make sim SIM="--seconds 60"
	$(BIN)/python -m tests.sim $(SIM)

mutants: $(STAMP) ## remove each guard that the simulation is held against: it must notice
	$(BIN)/python -m tests.sim --mutants

compose-smoke: $(STAMP) ## the containers of compose/ for real, by podman, runc and debootstrap (root; not part of test)
	EGM_SMOKE_PYTHON=$(CURDIR)/$(BIN)/python bash compose/smoke.sh

clean: ## remove everything that the other targets created
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
