# The two commands of a new user are `make tune` and `make test`; both make their own environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: tune test bench lint clean

tune: $(VENV)/.tune
	$(BIN)/perftool tune --budget 60 $(ARGS)

test: lint
	$(BIN)/pytest -n 2 $(ARGS)

bench: $(VENV)/.test
	$(BIN)/python -m tests.perf $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/.tune: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "perftool needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.test: $(VENV)/.tune
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dev,tensorboard]'
	@touch $@
