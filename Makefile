# One word for each thing a developer does. Needed: Python >= 3.11 with venv and pip, make, curl, on Linux GNU's OpenMP
# (libgomp), and a package registry.
#
# Each environment step leaves a stamp in .venv, so a later `make run` installs nothing and starts at once. A stamp
# is older than pyproject.toml or its file of pins exactly when what is installed may be out of date.
#
# What a registry sends is installed only if its hash stands in pins/, each package by itself (`--no-deps`): those
# files are the whole list, and `make pins` writes them.

PYTHON ?= python3
# Of pytest: one more than two cores, because a third of the time of most tests is waiting.
WORKERS ?= 3

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
INSTALL := $(PIP) install --no-deps --require-hashes --requirement
# With the build tool of pins/run.txt, installed once, instead of a fresh one downloaded for each install.
INSTALL_KOO := $(PIP) install --no-deps --no-build-isolation --editable .

# A developer's own settings for pip: the first makes every install into a venv fail, the second hides warnings
# about it. And koo's tests and server must not see the packages of another project.
export PIP_USER := 0
unexport PYTHONPATH PYTHONHOME
# Without compiled files each of the hundreds of processes that the tests start would compile koo for itself.
unexport PYTHONDONTWRITEBYTECODE

# An environment whose python is gone (an upgrade of the system's) is made anew, whatever its stamps say.
$(shell test -x $(BIN)/python || rm -rf $(STAMPS))

# Fails with the one command that installs what this machine lacks. It comes before anything of ours is installed: a
# missing library otherwise shows when the first question is asked, a missing program when the tests have run for minutes.
define NEEDS
@missing=; \
test -x $(BIN)/python || $(PYTHON) -c 'import ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
test "$$(uname)" != Linux || $(PYTHON) -c 'import ctypes; ctypes.CDLL("libgomp.so.1")' 2>/dev/null \
  || missing="$$missing libgomp1"; \
test "$(MAKECMDGOALS)" = run || command -v curl >/dev/null || missing="$$missing curl"; \
test -z "$$missing" || { \
  echo "koo: not on this machine:$$missing (the names of Debian and Ubuntu). Install it, then try again:" >&2; \
  echo "  apt install$$missing" >&2; exit 1; }
endef

.DEFAULT_GOAL := help
# Two pips at a time in one environment break it, so `make -j` changes nothing here.
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help setup run test check lint bench docs pins clean prove-bare prove-chaos prove-database prove-fleet prove-money prove-monitoring prove-once prove-oldest prove-own prove-page prove-python

help: ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

setup: $(STAMPS)/run $(STAMPS)/test $(STAMPS)/bench ## make .venv with everything in it

run: $(STAMPS)/run ## serve on 127.0.0.1:8000 with embedded defaults (SQLite, the local model)
	@exec $(BIN)/koo serve

test: lint ## lint, types and all tests, on real PostgreSQL 16 and 18
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal $(ARGS)

check: lint ## lint, format, types, architecture
	@$(BIN)/python -m pytest -q tests/test_architecture.py tests/test_house.py

lint: $(STAMPS)/test
	@echo "koo: ruff and mypy" >&2
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --quiet --check || { echo "koo: to format: $(BIN)/ruff format" >&2; exit 1; }
	@$(BIN)/mypy

bench: $(STAMPS)/bench ## measure koo beside its peers
	@$(BIN)/python -m benchmarks $(ARGS)

docs: $(STAMPS)/test ## write the generated pages of docs/ again
	@$(BIN)/python docs/generate.py

pins: $(STAMPS)/test ## write pins/ again, with the versions that stand there; ARGS=--upgrade: the newest
	@$(BIN)/python -m proofs.pins $(ARGS)

prove-bare: ## both commands on bare Debian 12 and 13 (root and debootstrap needed); ARGS: bookworm, trixie, user
	@$(PYTHON) -m proofs.bare $(ARGS)

prove-chaos: $(STAMPS)/test ## mixed faults for ten minutes, and nothing is left of them; ARGS: --minutes 60, --seed 2
	@$(BIN)/python -m proofs.chaos $(ARGS)

prove-database: $(STAMPS)/test ## PgBouncer, a failover, a restart (needs Debian's postgresql-15 and pgbouncer)
	@$(BIN)/python -m proofs.database

prove-fleet: $(STAMPS)/test ## many processes on one store (needs Debian's postgresql-15 and pgbouncer); ARGS: a part
	@$(BIN)/python -m proofs.fleet $(ARGS)

prove-monitoring: $(STAMPS)/test ## a real Prometheus scrapes koo and fires (needs Debian's prometheus)
	@$(BIN)/python -m proofs.monitoring

prove-money: $(STAMPS)/test ## no kill, stop or partition makes a fleet spend more than its budget (10 minutes)
	@$(BIN)/python -m proofs.money

prove-once: $(STAMPS)/test ## a transfer whose COMMIT is lost is done once; ARGS: transfers of each driver
	@$(BIN)/python -m proofs.once $(ARGS)

prove-oldest: ## all tests with the lower bounds of pyproject.toml
	@$(PYTHON) -m proofs.fresh --oldest $(ARGS)

prove-own: ## libraries that the suite does not install, in environments of their own; ARGS: one of them
	@$(PYTHON) -m proofs.own $(ARGS)

prove-page: $(STAMPS)/test ## types of the page (needs npm), its pictures (needs Debian's chromium)
	@$(BIN)/python -m proofs.page

prove-python: ## all tests in a fresh environment of PYTHON=…
	@$(PYTHON) -m proofs.fresh $(ARGS)

clean: ## remove .venv and what the tools leave behind; never data/
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov
	find src backend tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# ---- the environment -----------------------------------------------------------------------------------------

# Without a prerequisite: an environment that exists is used, whoever made it.
$(BIN)/python:
	$(NEEDS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "koo: $(PYTHON) is older than 3.11; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "koo: making $(VENV)" >&2
	@$(PYTHON) -m venv --clear $(VENV) || { \
	  echo "koo: python's venv is missing; on Debian: apt install python3-venv" >&2; rm -rf $(VENV); exit 1; }

$(STAMPS)/run: pyproject.toml pins/run.txt | $(BIN)/python
	$(NEEDS)
	@echo "koo: installing koo, what it runs on and the local model (93 MB)" >&2
	@$(INSTALL) pins/run.txt
	@$(INSTALL_KOO)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/test: pyproject.toml pins/test.txt | $(STAMPS)/run
	$(NEEDS)
	@echo "koo: installing what the tests need: PostgreSQL, the vendors' SDKs" >&2
	@$(INSTALL) pins/test.txt
	@mkdir -p $(STAMPS) && touch $@

# Code 3: some peers could not be installed. The tables say so, the others are measured, and there is no stamp, so
# that the next `make bench` tries again.
$(STAMPS)/bench: pyproject.toml pins/bench.txt pins/apart.txt | $(STAMPS)/test
	@echo "koo: installing what the benchmarks compare with" >&2
	@rm -f $@; $(BIN)/python -m benchmarks.install && touch $@ || [ $$? -eq 3 ]
