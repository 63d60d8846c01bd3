# Each target sets up what it needs in a virtual environment of its own.
PYTHON ?= python3
VENV ?= .venv

.PHONY: demo test lint docs clean

demo: $(VENV)/installed
	$(VENV)/bin/dydit demo --out demo --force

test: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --dist loadfile

lint: $(VENV)/installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet --strict --config-file docs/mkdocs.yml

$(VENV)/installed: pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -e .
	touch $@

$(VENV)/installed-test: pyproject.toml $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet -e '.[test]'
	touch $@

$(VENV)/installed-docs: pyproject.toml $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) demo runs site
