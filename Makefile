# Every target makes .venv itself when there is none, from nothing but Python >= 3.11 and the package index; demo,
# test-browser, docs, notebooks and release-check make .venv-tools, since gradio needs an older Pillow than the rest.
# `make help` lists them. Options: PYTHON=/path/to/python3.11  JOBS=4  ARGS="--help"

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart demo test check test-browser docs notebooks bench release-check

PYTHON ?=
JOBS ?= 2
ARGS ?=

BIN := .venv/bin
# Written last: an install that was cut short leaves no stamp and is taken up again by the next target.
# The package with what it needs to run; then what lint, types, tests and the extras need on top.
INSTALLED := .venv/installed
TESTABLE := .venv/installed-test
TOOLS := .venv-tools/bin
SHOWABLE := .venv-tools/installed-demo
TOOLED := .venv-tools/installed-tools
# Exact, so that a plain `torch` never resolves to another build; installed first, for the same reason.
TORCH := $(shell sed -n 's/^\(torch==.*\)$$/\1/p' constraints.txt)

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | column -t -s '|' 2>/dev/null \
	|| sed -nE 's/^([a-z-]+):.*## (.*)/  make \1 - \2/p' $(firstword $(MAKEFILE_LIST))

quickstart: $(INSTALLED) ## teacher, student, distillation and an attention image, on generated scenes (options: ARGS="--help")
	$(BIN)/dual-distill quickstart $(ARGS)

demo: $(SHOWABLE) ## a page in the browser that asks a checkpoint (options: ARGS="MODEL --teacher TEACHER --images FOLDER")
	$(TOOLS)/dual-distill demo $(ARGS)

test: check ## check, then every fast test and every example in a docstring (options: ARGS="-k name", JOBS=4)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(TESTABLE) ## lint, format and types; runs nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-browser: $(TOOLED) ## the demo in headless Chromium (Debian: apt-get install chromium); DEMO_MODELS, DEMO_PICTURES: see the test
	OMP_NUM_THREADS=1 $(TOOLS)/python -m pytest -m browser tests/demo/test_browser.py $(ARGS)

docs: $(TOOLED) ## the site, into site/, without a warning; its links are checked
	$(TOOLS)/python docs/site/build.py

notebooks: $(TOOLED) ## every notebook, run on tiny settings
	OMP_NUM_THREADS=1 $(TOOLS)/python -m pytest -m slow tests/integration/test_notebooks.py $(ARGS)

release-check: $(TOOLED) ## sdist and wheel, into dist/: contents, metadata, and the quickstart's smoke preset from the wheel alone
	PYTHON=$(TOOLS)/python .ci/release-check

bench: $(INSTALLED) ## every script in benchmarks/, results to benchmarks/results (one alone: SCRIPTS=benchmarks/name.py)
	@test -n "$(SCRIPTS)" || { echo "make bench: there is no script in benchmarks/ yet" >&2; exit 1; }
	@set -e; for script in $(SCRIPTS); do echo "$$script $(ARGS)"; $(BIN)/python "$$script" $(ARGS); done

SCRIPTS ?= $(sort $(wildcard benchmarks/[a-z]*.py))

# A Python counts when it really starts (a version manager's shim may exist and fail), can make environments, and is one of
# the versions that the pinned torch is built for.
SUITABLE := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
CANDIDATES = $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.14 /usr/bin/python3)

.venv-tools/%: CONSTRAINTS := constraints-tools.txt
CONSTRAINTS := constraints.txt

$(INSTALLED) .venv-tools/installed: pyproject.toml constraints.txt constraints-tools.txt
	@set -e; rm -f $@; found=; \
	if ! $(@D)/bin/python -m pip --version >/dev/null 2>&1; then \
		for candidate in $(CANDIDATES); do \
			if "$$candidate" -c '$(SUITABLE)' >/dev/null 2>&1; then found="$$candidate"; break; fi; \
		done; \
		if test -z "$$found"; then \
			echo "make: no Python 3.11 to 3.14 with its venv module was found (tried: $(CANDIDATES));" \
				"install one, or name it: make PYTHON=/path/to/python3" >&2; \
			exit 1; \
		fi; \
		echo "making $(@D) with $$("$$found" --version)"; \
		"$$found" -m venv --clear $(@D); \
	fi
	$(@D)/bin/python -m pip install --quiet --constraint $(CONSTRAINTS) "$(TORCH)"
	$(@D)/bin/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable .
	@touch $@

$(TESTABLE): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

$(SHOWABLE): .venv-tools/installed
	$(TOOLS)/python -m pip install --quiet --constraint constraints-tools.txt --editable '.[demo]'
	@touch $@

$(TOOLED): .venv-tools/installed
	$(TOOLS)/python -m pip install --quiet --constraint constraints-tools.txt --editable '.[tools]'
	@touch $@
