# Every target but clean does all the set-up on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test bench bench-compare fuzz torture clean

demo: $(VENV)/installed
	$(BIN)/refine-cli demo --out runs/demo

test: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

# At most 20 minutes on two cores, the last case included.
bench: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.suite --minutes 19

bench-compare: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.suite --compare

# Damaged files, weights, states and calls for so many minutes; what is found lies in runs/fuzz. SEED repeats a run.
MINUTES ?= 60
fuzz: $(VENV)/installed-dev
	PYTHONPATH=tests $(BIN)/python -m fuzz --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

# Some hundred kills, caps of memory and, where root runs it, small disks: about half an hour on two cores.
torture: $(VENV)/installed-dev
	PYTHONPATH=tests $(BIN)/python -m torture $(if $(SEED),--seed $(SEED))

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) runs
