# Every target makes what it needs. Paths stay relative: the checkout may stand in a folder with spaces.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: train test campaign lint docs install clean

train: $(VENV)/.installed
	$(BIN)/astralora train

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto
	ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=AVX2 $(BIN)/python -m pytest -n auto -q -m 'processors and not campaign'
	ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -q -m 'processors and not campaign'

# Long and repeated tests: minutes to an hour.
campaign: install
	$(BIN)/python -m pytest -n auto -m campaign

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

install: $(VENV)/.installed-dev

# Training needs the package alone; tests, linters and the documentation bring the rest when they are first run.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'astralora needs Python 3.11 or newer; name one with make PYTHON=python3.12'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	$(INSTALL) -e '.[$*]'
	@touch $@

clean:
	rm -rf $(VENV) dist build site
