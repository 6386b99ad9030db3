# One command for each developer task. It requires Python >= 3.11 with venv and pip, make, curl, GNU OpenMP (libgomp) on
# Linux, and access to a package registry.
#
# Each installation step leaves a stamp file in .venv, so that a later `make run` installs nothing and starts
# immediately. A stamp that is older than pyproject.toml or its pins file means that the installed packages may be out
# of date.
#
# Every installed package is pinned by hash in pins/. Packages are installed without their dependencies (`--no-deps`),
# because the pins files list all of them. `make pins` updates these files.

PYTHON ?= python3
# pytest processes: one more than two cores, because most tests spend a third of their time waiting.
WORKERS ?= 3

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
INSTALL := $(PIP) install --no-deps --require-hashes --requirement
# Uses the build tool from pins/run.txt. With build isolation, pip would download it again for each install.
INSTALL_KOO := $(PIP) install --no-deps --no-build-isolation --editable .

# Override a developer's own settings. With PIP_USER=1 every install into a venv fails. With PYTHONPATH or PYTHONHOME,
# koo's tests and server would import packages of another project.
export PIP_USER := 0
unexport PYTHONPATH PYTHONHOME
# With this variable set, each of the hundreds of processes that the tests start would have to compile koo again.
unexport PYTHONDONTWRITEBYTECODE

# If the environment's Python no longer works (after an upgrade of the system), recreate it regardless of its stamps.
$(shell test -x $(BIN)/python || rm -rf $(STAMPS))

# Fails with the command that installs the missing system packages. It runs before anything is installed. Otherwise a
# missing library would show only at the first query, and a missing program after minutes of tests.
define NEEDS
@missing=; \
test -x $(BIN)/python || $(PYTHON) -c 'import ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
test "$$(uname)" != Linux || $(PYTHON) -c 'import ctypes; ctypes.CDLL("libgomp.so.1")' 2>/dev/null \
  || missing="$$missing libgomp1"; \
test "$(MAKECMDGOALS)" = run || command -v curl >/dev/null || missing="$$missing curl"; \
test -z "$$missing" || { \
  echo "koo: missing system packages:$$missing (names in Debian and Ubuntu). Install them and try again:" >&2; \
  echo "  apt install$$missing" >&2; exit 1; }
endef

.DEFAULT_GOAL := help
# Two pip processes at the same time would break the environment, so `make -j` has no effect here.
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help setup run test check lint bench docs pins clean prove-bare prove-chaos prove-database prove-fleet prove-money prove-monitoring prove-once prove-oldest prove-own prove-page prove-python

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

setup: $(STAMPS)/run $(STAMPS)/test $(STAMPS)/bench ## create .venv with everything in it

run: $(STAMPS)/run ## serve on 127.0.0.1:8000 with embedded defaults (SQLite, the local model)
	@exec $(BIN)/koo serve

test: lint ## lint, types and all tests, on real PostgreSQL 16 and 18
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal $(ARGS)

check: lint ## lint, format, types, architecture
	@$(BIN)/python -m pytest -q tests/test_architecture.py tests/test_house.py

lint: $(STAMPS)/test
	@echo "koo: ruff and mypy" >&2
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --quiet --check || { echo "koo: format the code with: $(BIN)/ruff format" >&2; exit 1; }
	@$(BIN)/mypy

bench: $(STAMPS)/bench ## measure koo and its peers
	@$(BIN)/python -m benchmarks $(ARGS)

docs: $(STAMPS)/test ## regenerate the generated pages of docs/
	@$(BIN)/python docs/generate.py

pins: $(STAMPS)/test ## regenerate pins/ with the current versions; ARGS=--upgrade: with the newest
	@$(BIN)/python -m proofs.pins $(ARGS)

prove-bare: ## make run and make test on bare Debian 12 and 13 (needs root and debootstrap); ARGS: bookworm, trixie, user
	@$(PYTHON) -m proofs.bare $(ARGS)

prove-chaos: $(STAMPS)/test ## mixed faults for ten minutes, from which koo recovers completely; ARGS: --minutes 60, --seed 2
	@$(BIN)/python -m proofs.chaos $(ARGS)

prove-database: $(STAMPS)/test ## PgBouncer, a failover, a restart (needs Debian's postgresql-15 and pgbouncer)
	@$(BIN)/python -m proofs.database

prove-fleet: $(STAMPS)/test ## many processes on one store (needs Debian's postgresql-15 and pgbouncer); ARGS: a part
	@$(BIN)/python -m proofs.fleet $(ARGS)

prove-monitoring: $(STAMPS)/test ## a real Prometheus scrapes koo and fires its alerts (needs Debian's prometheus)
	@$(BIN)/python -m proofs.monitoring

prove-money: $(STAMPS)/test ## no kill, stop or partition makes a fleet spend more than its budget (10 minutes)
	@$(BIN)/python -m proofs.money

prove-once: $(STAMPS)/test ## a transfer whose COMMIT is lost is applied exactly once; ARGS: transfers per driver
	@$(BIN)/python -m proofs.once $(ARGS)

prove-oldest: ## all tests with the lower bounds of pyproject.toml
	@$(PYTHON) -m proofs.fresh --oldest $(ARGS)

prove-own: ## libraries that the suite does not install, in separate environments; ARGS: one of them
	@$(PYTHON) -m proofs.own $(ARGS)

prove-page: $(STAMPS)/test ## the page's types (needs npm) and pictures (needs Debian's chromium)
	@$(BIN)/python -m proofs.page

prove-python: ## all tests in a new environment with PYTHON=…
	@$(PYTHON) -m proofs.fresh $(ARGS)

clean: ## remove .venv and all files that tools create; never data/
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov
	find src backend tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# ---- the environment -----------------------------------------------------------------------------------------

# No prerequisites, so that an existing environment is used even if it was not created here.
$(BIN)/python:
	$(NEEDS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "koo: $(PYTHON) is older than 3.11; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "koo: creating $(VENV)" >&2
	@$(PYTHON) -m venv --clear $(VENV) || { \
	  echo "koo: python's venv is missing; on Debian: apt install python3-venv" >&2; rm -rf $(VENV); exit 1; }

$(STAMPS)/run: pyproject.toml pins/run.txt | $(BIN)/python
	$(NEEDS)
	@echo "koo: installing koo, its dependencies and the local model (93 MB)" >&2
	@$(INSTALL) pins/run.txt
	@$(INSTALL_KOO)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/test: pyproject.toml pins/test.txt | $(STAMPS)/run
	$(NEEDS)
	@echo "koo: installing the tests' dependencies: PostgreSQL, the vendors' SDKs" >&2
	@$(INSTALL) pins/test.txt
	@mkdir -p $(STAMPS) && touch $@

# Exit code 3 means that some peers could not be installed. The tables say so, and the others are measured. No stamp is
# left, so that the next `make bench` tries again.
$(STAMPS)/bench: pyproject.toml pins/bench.txt pins/apart.txt | $(STAMPS)/test
	@echo "koo: installing the benchmarks' peers" >&2
	@rm -f $@; $(BIN)/python -m benchmarks.install && touch $@ || [ $$? -eq 3 ]
