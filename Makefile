# `make demo` and `make test` are all a newcomer needs; the rest is for those who change zoo.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS := $(VENV)/.installed-docs

.PHONY: demo test test-all check lint bench docs schema certificates clean

demo: $(INSTALLED)            ## Train a ViT on handwritten digits, reload it, prove it equal to its references.
	$(BIN)/zoo demo

test: $(INSTALLED)            ## The tests, some minutes on two cores.
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(INSTALLED)        ## The long ones too.
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow or not slow"

check: lint test              ## Everything that has to pass before a change lands.

lint: $(INSTALLED)            ## Style, types, and which folder may import which.
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED)           ## Speed against the peers, in one run (takes an idle machine).
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks

docs: $(DOCS)                 ## The documentation, into site/.
	$(BIN)/mkdocs build --strict

schema: $(INSTALLED)          ## The JSON Schemas that editors read.
	$(BIN)/zoo schema -o configs/schema

certificates: $(INSTALLED)    ## Verify every preset at full size and renew the tables.
	$(BIN)/python -m zoo.verification.certificate

clean:
	rm -rf $(VENV) build dist site

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,test]'
	touch $@

$(DOCS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@
