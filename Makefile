# Needs only Python 3.11+ and make. Each target makes .venv when it is not there, or older than what it was made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# mypy reads the sources through these links, because it does not know that kernels/ is imported as tritonrl.kernels.
TYPES := .mypy_cache/sources

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types bench clean distclean

help:
	@echo "make demo       train PPO on CartPole-v1; curve, metrics and checkpoint go to runs/demo"
	@echo "make test       run the test suite"
	@echo "make lint       ruff check, ruff format --check, mypy"
	@echo "make bench      run the benchmark suite; record, table and plots go to perf/ (minutes)"
	@echo "make clean      remove caches and build products (runs/ and .venv stay)"
	@echo "make distclean  the same, and .venv"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "tritonrl needs Python 3.11 or later; $(PYTHON) is not. Name another one: make PYTHON=python3.11 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): a few minutes and a large download (torch) the first time."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/python examples/ppo.py --out runs/demo --overwrite

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(STAMP) types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	rm -rf $(TYPES)
	mkdir -p $(TYPES)/tritonrl
	ln -s $(CURDIR)/tritonrl/* $(TYPES)/tritonrl/
	ln -s $(CURDIR)/kernels $(TYPES)/tritonrl/kernels
	ln -s $(CURDIR)/examples $(TYPES)/examples
	ln -s $(CURDIR)/perf $(TYPES)/perf
	cd $(TYPES) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache tritonrl examples perf

bench: $(STAMP)
	$(BIN)/python -m perf --json
	$(BIN)/python -m perf report

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
