# Two commands: `make demo` and `make test`. Each installs what it is missing into .venv.
PYTHON ?= python3
BIN := .venv/bin
UV := $(shell command -v uv 2>/dev/null)

.PHONY: demo test exercises sync docs clean

demo: .venv/installed
	$(BIN)/lp_demo --folder report

test: .venv/installed-dev
	$(BIN)/python tools/test.py

# The tests again, with the solution of every exercise in the place of the dots.
exercises: .venv/installed-dev
	$(BIN)/python tools/test.py --exercises

# Bring the exported modules in step with the notebooks.
sync: .venv/installed-dev
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export

# Build the site into _docs. Needs Quarto.
docs: .venv/installed-dev
	$(BIN)/python -c "from nbdev.serve import proc_nbs; proc_nbs()"
	cd _proc && quarto render --no-cache

clean:
	rm -rf report runs build dist _proc _docs *.egg-info

.venv/bin/python:
ifdef UV
	uv venv --python $(PYTHON) .venv
else
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
endif

.venv/installed: .venv/bin/python settings.ini setup.py
ifdef UV
	uv pip install --python $(BIN)/python -e .
else
	$(BIN)/python -m pip install -e .
endif
	touch $@

.venv/installed-dev: .venv/installed
ifdef UV
	uv pip install --python $(BIN)/python -e ".[dev]"
else
	$(BIN)/python -m pip install -e ".[dev]"
endif
	touch $@
