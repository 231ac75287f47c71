# The tools of the active environment; `make PYTHON=.venv/bin/python check` names another one.
PYTHON ?= python

.DEFAULT_GOAL := help
.PHONY: help check lint types test docs format

help:
	@echo "make check    format check, lint, types and tests: what CI runs"
	@echo "make test     the tests, in parallel"
	@echo "make docs     the documentation, into build/site"
	@echo "make format   format the code and fix what lint can fix"

check: lint types test

lint:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .

types:
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest -q -n auto

docs:
	$(PYTHON) -m mkdocs build --strict

format:
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .
