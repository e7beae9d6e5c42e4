# Every target makes its own environment first: `make demo` and `make test` work on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
export OMP_NUM_THREADS ?= 2

.PHONY: demo test check format bench peers planted clean

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/.installed  ## train, evaluate, relax and run MD on the data that ships
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo.sh

test: $(VENV)/.installed  ## unit, physics and integration tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(WORKERS)

check: $(VENV)/.installed  ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed  ## our models and, where `make peers` installed them, other packages
	$(BIN)/python scripts/compare_peers.py $(ARGS)

peers: $(VENV)/.installed  ## install the other packages into .peers/, about 6 GB
	PYTHON=$(CURDIR)/$(BIN)/python bash scripts/install_peers.sh .peers

planted: $(VENV)/.installed  ## plant known bugs in a copy and expect the suite to catch each
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -m planted -n $(WORKERS)

clean:
	rm -rf $(VENV) outputs .pytest_cache .ruff_cache
