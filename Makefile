# Roster in one command. Needs CPython 3.11, 3.12 or 3.13 (with venv) and make; everything else is
# fetched, pinned and checked. Try `make help`.

PYTHON ?= python3
FOR    ?=
RATE   ?=
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install run test test-shared test-system check lock clean

help:  ## what can be made
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3.12 chooses another Python for .venv"

# The pins are installed as they stand; the project itself then needs no resolution and no network.
$(STAMP): requirements.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "roster: $(PYTHON) is not found; make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
	  echo "roster: $(PYTHON) is $$($(PYTHON) --version 2>&1 || true); CPython 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.12 ..." >&2; exit 2; }
	@# A .venv of another version (PYTHON= was changed) is made anew.
	@$(BIN)/python -c 'import sys; print(sys.version_info[:2])' 2>/dev/null \
	  | grep -qxF "$$($(PYTHON) -c 'import sys; print(sys.version_info[:2])')" || rm -rf $(VENV)
	@test -x $(BIN)/pip || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); } || { \
	  echo "roster: $(PYTHON) cannot make a virtual environment; install its venv module (Debian: python3-venv)" >&2; exit 2; }
	@echo "installing the pinned packages into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: --require-hashes -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

install: $(STAMP)  ## make .venv with the pinned packages

run: $(STAMP)  ## start everything and show it (FOR=60 ends after 60 s, RATE=50 for more load)
	@$(BIN)/roster up --workload $(if $(FOR),--for $(FOR)) $(if $(RATE),--rate $(RATE))

test: check  ## check, then all tests on a real broker and registry
	@$(MAKE) --no-print-directory -j2 test-shared test-system

# Two halves at once, since most of a test is waiting. What the second says is shown when it ends.
test-shared:
	@$(BIN)/python -m pytest -m "not system"

test-system:
	@$(BIN)/python -m pytest -m system >$(VENV)/test-system.log 2>&1; ended=$$?; \
	  cat $(VENV)/test-system.log; exit $$ended

check: $(STAMP)  ## format, lint, types, import contracts
	@$(BIN)/ruff format --check --quiet . >/dev/null || { echo "run: $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports

lock: $(STAMP)  ## resolve the dependencies of pyproject.toml anew into requirements.txt
	@$(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --only-binary :all: --all-extras \
	  --generate-hashes --no-emit-index-url --no-header --upgrade pyproject.toml -o requirements.txt

clean:  ## stop what runs and remove .roster (the data); .venv and the download cache stay
	@if test -x $(BIN)/roster; then $(BIN)/roster clean; else rm -rf .roster; fi
