# Every target makes .venv itself when there is none, from nothing but Python >= 3.11 and the package index.
# `make help` lists them. Options: PYTHON=/path/to/python3.11  JOBS=4  ARGS="--help"

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test check bench

PYTHON ?=
JOBS ?= 2
ARGS ?=

BIN := .venv/bin
# Written last: an install that was cut short leaves no stamp and is taken up again by the next target.
# The package with what it needs to run; then what lint, types, tests and the extras need on top.
INSTALLED := .venv/installed
TESTABLE := .venv/installed-test
# Exact, so that a plain `torch` never resolves to another build; installed first, for the same reason.
TORCH := $(shell sed -n 's/^\(torch==.*\)$$/\1/p' constraints.txt)

help: ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | column -t -s '|' 2>/dev/null \
	|| sed -nE 's/^([a-z]+):.*## (.*)/  make \1 - \2/p' $(firstword $(MAKEFILE_LIST))

quickstart: $(INSTALLED) ## teacher, student, distillation and an attention image, on generated scenes (options: ARGS="--help")
	$(BIN)/dual-distill quickstart $(ARGS)

test: check ## check, then every test and every example in a docstring (options: ARGS="-k name", JOBS=4)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

check: $(TESTABLE) ## lint, format and types; runs nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED) ## every script in benchmarks/, results to benchmarks/results (one alone: SCRIPTS=benchmarks/name.py)
	@test -n "$(SCRIPTS)" || { echo "make bench: there is no script in benchmarks/ yet" >&2; exit 1; }
	@set -e; for script in $(SCRIPTS); do echo "$$script $(ARGS)"; $(BIN)/python "$$script" $(ARGS); done

SCRIPTS ?= $(sort $(wildcard benchmarks/[a-z]*.py))

# A Python counts when it really starts (a version manager's shim may exist and fail), can make environments, and is one of
# the versions that the pinned torch is built for.
SUITABLE := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
CANDIDATES = $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.14 /usr/bin/python3)

$(INSTALLED): pyproject.toml constraints.txt
	@set -e; rm -f $@; found=; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		for candidate in $(CANDIDATES); do \
			if "$$candidate" -c '$(SUITABLE)' >/dev/null 2>&1; then found="$$candidate"; break; fi; \
		done; \
		if test -z "$$found"; then \
			echo "make: no Python 3.11 to 3.14 with its venv module was found (tried: $(CANDIDATES));" \
				"install one, or name it: make PYTHON=/path/to/python3" >&2; \
			exit 1; \
		fi; \
		echo "making .venv with $$("$$found" --version)"; \
		"$$found" -m venv --clear .venv; \
	fi
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "$(TORCH)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(TESTABLE): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@
