# Everything runs from .venv, which the first target creates and fills.
# It needs Python >= 3.11 and pip; another Python: make run PYTHON=python3.13

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
FLOOR := .venv-floor
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check

# Tests run side by side, in processes that have a PostgreSQL each. For a debugger:
# make test ARGS="-n0 --pdb".
TOGETHER := -n logical --maxprocesses 4 --dist worksteal

.PHONY: help run shop test check all floor lint format types bench mutants docs audit lock clean

help: ## Show this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

# `exec`, so that Ctrl-C and SIGTERM reach the program itself.
run: $(INSTALLED) ## Serve the example; flags: make run ARGS="--port 9000"
	@exec $(BIN)/python example_app.py $(ARGS)

shop: $(INSTALLED) ## Serve the shop, the larger example: sign-in, cart, chat, devices
	@exec $(BIN)/python -m examples.shop $(ARGS)

test: $(INSTALLED) ## Run the quick tests; some of them: make test ARGS="-k cookie"
	@$(BIN)/python -m pytest $(TOGETHER) $(ARGS)

check: lint types all ## Everything CI checks

all: $(INSTALLED) ## Run the slow tests as well
	@$(BIN)/python -m pytest $(TOGETHER) --slow --pace $(ARGS)

# The oldest versions that setup.py allows; the lock has the newest.
floor: $(FLOOR)/.installed ## Run the tests of the core with those
	@$(FLOOR)/bin/python -m pytest $(TOGETHER) --slow tests/unit \
		tests/acceptance tests/tornado_suite tests/integration/test_store.py $(ARGS)

lint: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python -m scripts.size

format: $(INSTALLED) ## Format the code, and mend what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(INSTALLED)
	@$(BIN)/mypy

bench: $(INSTALLED) ## Measure; choose what: make bench ARGS="--help"
	@exec $(BIN)/python -m benchmarks $(ARGS)

mutants: $(INSTALLED) ## Put faults in, and see tests fail; in one file: make mutants ARGS=signing
	@$(BIN)/python -m scripts.mutants $(ARGS)

docs: $(INSTALLED) ## Build the documentation into site/; to see it: make docs ARGS=serve
	@$(BIN)/python scripts/reference.py
	@$(BIN)/python scripts/pictures.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs $(or $(ARGS),build --strict)

audit: $(INSTALLED) ## Ask for known vulnerabilities of what is locked
	@$(BIN)/pip-audit --requirement requirements/dev.txt --no-deps

lock: ## Lock anew the newest versions that setup.py and requirements/dev.in allow
	@PYTHON=$(PYTHON) requirements/lock

clean: ## Remove what the tools made; .venv and the example's database stay
	@rm -rf build dist site htmlcov .coverage* *.egg-info \
		.hypothesis .mypy_cache .pytest_cache .ruff_cache

# Debian ships Python without ensurepip: there pip reaches into the venv from outside.
$(INSTALLED): requirements/dev.txt requirements/no-deps.txt setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'This needs Python >= 3.11; name one: make $@ PYTHON=python3.13' >&2; exit 1; }
	@echo 'Installing into $(VENV): once, about a minute.'
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || \
		{ $(PYTHON) -m venv --without-pip $(VENV) && \
		  $(PYTHON) -m pip -qq --python $(BIN)/python install pip; }
	@$(PIP) install --requirement requirements/dev.txt
	@$(PIP) install --no-deps --no-build-isolation --requirement requirements/no-deps.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(FLOOR)/.installed: requirements/floor.txt $(INSTALLED)
	@$(BIN)/python -m venv --without-pip $(FLOOR)
	@$(PIP) --python $(FLOOR)/bin/python install --requirement requirements/dev.txt
	@$(PIP) --python $(FLOOR)/bin/python install --no-deps --no-build-isolation \
		--requirement requirements/no-deps.txt --requirement requirements/floor.txt
	@$(PIP) --python $(FLOOR)/bin/python install --no-deps --no-build-isolation --editable .
	@touch $@
