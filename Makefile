# Every target but clean does all the set-up on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TOOLS := .venv-tools
LOCK := requirements-dev.lock

.PHONY: demo test bench bench-compare fuzz torture lock sbom lower-bounds clean

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

# By the lock file: each file that is installed has the hash that it had when the lock was made, torch's wheel too.
$(VENV)/installed-dev: $(LOCK) pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes --requirement $(LOCK)
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@ $(VENV)/installed

# The newest versions that pyproject.toml allows, for every platform and Python, with the hashes of all their files. Where
# pip is given constraints, as a machine does that has some versions at hand, the lock keeps to them.
CONSTRAINTS = $(shell $(PYTHON) -m pip config list | sed -n "s/.*constraint='\(.*\)'/\1/p")
lock: $(TOOLS)/installed
	$(TOOLS)/bin/uv pip compile pyproject.toml --quiet --extra dev --universal --python-version 3.11 --upgrade \
	  --generate-hashes --no-annotate --no-emit-index-url $(addprefix --constraint ,$(CONSTRAINTS)) \
	  --custom-compile-command "make lock" --output-file $(LOCK)

# What is installed for development, with licences: CycloneDX JSON. The lock file is what pip-audit reads:
# pip-audit --require-hashes --disable-pip --requirement requirements-dev.lock
sbom: $(VENV)/installed-dev $(TOOLS)/installed
	mkdir -p runs
	$(TOOLS)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
	  --output-file runs/sbom.cdx.json $(BIN)/python

# TORCH=present spares the gigabytes of the lowest torch and tests the others with that of $(VENV).
lower-bounds: $(VENV)/installed-dev $(TOOLS)/installed
	.ci/lower-bounds $(TORCH)

# In an environment of their own: what makes the lock is no part of it.
$(TOOLS)/installed: Makefile
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet uv==0.13.9 cyclonedx-bom==7.5.0
	touch $@

clean:
	rm -rf $(VENV) $(TOOLS) .venv-lower runs
