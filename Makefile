# Each target sets up .venv by itself, on a machine that has only Python 3.11 or newer; a stamp in
# .venv says what is installed, so the second time is quick.

# The first of these that runs and is new enough is used; PYTHON=/path/to/python comes before them.
PYTHONS = $(PYTHON) python3.11 python3.12 python3.13 python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
LISTS := pyproject.toml constraints.txt
LAB_FLAGS =

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lab lint notebooks docs

help:            ## show this list
	@grep -E '^[a-z]+: .*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /make \1\t/' | expand -t 18

demo: $(VENV)/installed-core         ## ask an oracle what a fine-tuned model hides (CPU, offline)
	@$(VENV)/bin/aotoolkit demo

test: $(VENV)/installed-all          ## run the whole test suite
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile    # each test runs on one thread

lab: $(VENV)/installed-lab           ## open JupyterLab on 127.0.0.1 with notebooks and tutorials
	$(VENV)/bin/jupyter lab --ServerApp.ip=127.0.0.1 --ServerApp.root_dir=. \
	    --LabApp.news_url=null --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate \
	    $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_FLAGS)

lint: $(VENV)/installed-all          ## check format, style and types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright

notebooks: $(VENV)/installed-all     ## write notebooks and tutorials, outputs included, from their src/
	$(VENV)/bin/python notebooks/build.py

docs: $(VENV)/installed-all          ## build the documentation into build/site, offline
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

$(VENV)/bin/python:
	@for python in $(PYTHONS); do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "Setting up $(VENV) with $$($$python --version)"; \
	        exec $$python -m venv $(VENV); \
	    fi; \
	done; \
	echo "aotoolkit needs Python 3.11 or newer, and none of these is: $(strip $(PYTHONS))." >&2; \
	echo "Install one, or name it: make $(or $(MAKECMDGOALS),demo) PYTHON=/path/to/python3.11" >&2; \
	exit 1

# torch alone first: it is the one large download, and must be the build that constraints.txt names.
$(VENV)/installed-core: $(VENV)/bin/python $(LISTS)
	@echo "Installing torch and aotoolkit (a few minutes the first time)"
	@$(PIP) torch
	@$(PIP) -e .
	@touch $@

$(VENV)/installed-lab: $(VENV)/installed-core $(LISTS)
	@echo "Installing the extra notebook"
	@$(PIP) -e '.[notebook]'
	@touch $@

$(VENV)/installed-all: $(VENV)/installed-core $(LISTS)
	@echo "Installing the extras notebook, lens, docs and dev"
	@$(PIP) -e '.[notebook,lens,docs,dev]'
	@touch $@
