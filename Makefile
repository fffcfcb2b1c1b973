# Everything a person or a machine does with this repository. `make` alone lists it.
# The environments are made on first use and again when pyproject.toml changes.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
DEMO := $(VENV)/demo.stamp
CLUSTER := $(VENV)/cluster.stamp
HOSTS := $(VENV)/hosts.stamp
DEV := $(VENV)/dev.stamp
BENCH := $(VENV)/bench.stamp
PEERS := $(VENV)/peers.stamp
LOWEST := .venv-lowest/stamp

OTHER_PYTHONS := 3.12 3.13
CORE_TESTS := tests/core tests/engines tests/web
TYPED := src $(wildcard typing_tests)
DOCS := README.md $(wildcard docs)

# How long the demonstration runs, on which database and on which web framework; empty: its own defaults.
SECONDS ?=
DB ?=
HOST ?=
# For `make cluster`, which takes SECONDS and SEED as well: what is killed, and which RabbitMQ; empty: its own defaults.
KILL ?=
AMQP ?=
# For `make upstream`: which part, e.g. UPSTREAM=sqlite; empty: all.
UPSTREAM ?=
# For `make bench`: which rows, e.g. ONLY="postgresql far"; empty: all. QUICK=1 or ROUNDS=5 make it shorter.
ONLY ?=
# For `make soak`: how long, which dice (empty: new ones), and on which drivers.
MINUTES ?= 30
SEED ?=
DRIVERS ?= psycopg,asyncpg
# More arguments for pytest, e.g. ARGS="-k nested --drivers sqlite,asyncpg".
ARGS ?=

##@ Use

.PHONY: help
help: ## this list
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@/ { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@printf '\n'

.PHONY: demo
demo: $(if $(filter-out webpy,$(HOST)),$(HOSTS),$(DEMO)) ## see it live: a web application with jobs (SECONDS=20 DB=... HOST=flask|fastapi|...|all)
	@exec env SECONDS='$(SECONDS)' DB='$(DB)' HOST='$(HOST)' $(BIN)/python -m examples.load

.PHONY: cluster
cluster: $(CLUSTER) ## two nodes with PostgreSQL, PgBouncer and RabbitMQ, killed at random (SECONDS=20 SEED=7 KILL="..." AMQP=own|URL)
	@exec env SECONDS='$(SECONDS)' SEED='$(SEED)' KILL='$(KILL)' AMQP='$(AMQP)' $(BIN)/python -m examples.cluster

##@ Test

.PHONY: test
test: $(DEV) ## all tests (ARGS="-k name --drivers sqlite" narrows them)
	@$(BIN)/pytest -n auto $(ARGS)

.PHONY: check
check: $(DEV) ## lint, format, types, who imports whom, and the examples in the docs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy $(TYPED)
	$(BIN)/pyright $(TYPED)
	$(BIN)/lint-imports
	$(BIN)/pytest --quiet $(DOCS)

.PHONY: test-lowest
test-lowest: $(LOWEST) ## the core tests on the oldest supported versions
	@.venv-lowest/bin/python -m pip list --format=freeze | grep -iE '^(sqlalchemy|greenlet|psycopg|asyncpg|aiosqlite|pymysql|aiomysql|asyncmy|web.py|flask|quart|fastapi|starlette|litestar|pyramid|aiohttp|falcon|bottle|sanic)=='
	@.venv-lowest/bin/pytest -n auto $(CORE_TESTS) $(ARGS)

.PHONY: test-versions
test-versions: ## the core tests on each newer Python that this machine has
	@missing=; \
	for version in $(OTHER_PYTHONS); do \
	  if tools/find-python $$version >/dev/null; then \
	    $(MAKE) .venv-$$version/stamp; \
	    echo "== $$(.venv-$$version/bin/python --version)"; \
	    .venv-$$version/bin/pytest -n auto tests/core $(ARGS); \
	  else missing="$$missing $$version"; fi; \
	done; \
	if [ -n "$$missing" ]; then echo "!! NOT TESTED, because this machine does not have it: Python$$missing"; fi

.PHONY: upstream
upstream: $(DEV) ## SQLAlchemy's own ORM tests on tenure's sessions, and Flask-SQLAlchemy's (UPSTREAM=sqlite: that part)
	@exec env UPSTREAM='$(UPSTREAM)' $(BIN)/python tests/upstream/run.py

.PHONY: hosts
hosts: $(PEERS) ## the contract on every host and on six peers; writes docs/reference/hosts.md
	@TENURE_HOSTS_TABLE=1 $(BIN)/pytest -n auto -W ignore -p no:unraisableexception --tb=native tests/contract $(ARGS) || true
	@git --no-pager diff --stat docs/reference/hosts.md

.PHONY: soak
soak: $(DEV) ## the torture test for long, with progress (MINUTES=30 SEED=7 DRIVERS=psycopg,asyncpg); Ctrl-C ends
	@exec $(BIN)/python -m tests.torture --minutes '$(MINUTES)' --drivers '$(DRIVERS)' $(if $(SEED),--seed '$(SEED)')

##@ Measure

.PHONY: bench
bench: $(BENCH) ## side by side with other libraries, ratios in one run
	@$(BIN)/python -m benchmarks $(ONLY)

##@ Tidy

.PHONY: format
format: $(DEV) ## let ruff format the code and mend what it safely can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: clean
clean: ## remove the environments and caches
	rm -rf .venv .venv-lowest $(OTHER_PYTHONS:%=.venv-%) build dist
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

# ------------------------------------------------------------------------- the environments

# `pip install --group` needs pip 25.1.
define environment # environment FOLDER [VERSION]
	@python=$$(tools/find-python $(2)) && echo "== making $(1) with $$($$python --version)" && \
	$$python -m venv --clear $(1) && \
	$(1)/bin/python -m pip install -qq --disable-pip-version-check --upgrade 'pip>=25.1'
endef
INSTALL = -m pip install -qq --disable-pip-version-check

$(BIN)/python:
	$(call environment,$(VENV))

$(DEMO): pyproject.toml | $(BIN)/python
	@echo "== installing what the demonstration needs (once)"
	@$(BIN)/python $(INSTALL) --editable '.[asyncio]' --group demo
	@touch $@

$(CLUSTER): pyproject.toml $(DEMO)
	@echo "== installing what the cluster needs (once)"
	@$(BIN)/python $(INSTALL) --group cluster
	@touch $@

$(HOSTS): pyproject.toml $(DEMO)
	@echo "== installing the other web frameworks (once)"
	@$(BIN)/python $(INSTALL) --group hosts
	@touch $@

$(DEV): pyproject.toml | $(BIN)/python
	@echo "== installing what tests and checks need (once)"
	@$(BIN)/python $(INSTALL) --editable '.[asyncio]' --group dev
	@touch $@

$(PEERS): pyproject.toml $(DEV)
	@echo "== installing what the contract is put to for comparison (once)"
	@$(BIN)/python $(INSTALL) --group peers
	@touch $@

$(BENCH): pyproject.toml $(DEV)
	@echo "== installing what the benchmarks compare with (once)"
	@$(BIN)/python $(INSTALL) --group bench
	@touch $@

$(LOWEST): pyproject.toml requirements/lowest.txt
	$(call environment,.venv-lowest,3.11)
	@.venv-lowest/bin/python $(INSTALL) --editable . --group test --requirement requirements/lowest.txt
	@touch $@

.venv-%/stamp: pyproject.toml
	$(call environment,.venv-$*,$*)
	@.venv-$*/bin/python $(INSTALL) --editable '.[asyncio]' --group test
	@touch $@
