# The commands of this checkout. Each sets up what it needs, and does it once:
#
#   make demo             install into .venv and watch a volume outlive its primary
#   make test             set up, check and test everything (what CI runs)
#   make guest            test on another kernel, under QEMU, what needs its NVMe-oF and MD
#   make lint             only the checks: ruff, mypy, codespell
#   make bench            compare with nbdkit and QEMU on this machine; BENCH="--rounds 5" passes options
#   make crash SEEDS=200  what power losses may leave of a copy, and of file systems, thoroughly
#   make fuzz MINUTES=10  bytes from outside, made up; by coverage where atheris is installed
#   make model            check all models of the specification in docs/spec; MODEL=large-cut names one
#   make soak MINUTES=30  random faults under a checking writer
#   make power ROUNDS=20  cut the power of guests with kernels of their own (root)
#   make explore          every order of events of a small world; EXPLORE="--faults 3" passes options
#   make clean            remove the environment and all caches
#
# PYTHON=python3.13 chooses the interpreter, VENV=DIR where its environment is.

SHELL := /bin/bash
MAKEFLAGS += --no-builtin-rules
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test lint lint-rules lint-format lint-types lint-words bench crash fuzz soak power explore model setup tools clean

VENV ?= .venv
MINUTES ?= 10
SEEDS ?= 200
ROUNDS ?= 20
BENCH ?=
EXPLORE ?= --writes 2 --faults 1 --deviations 1
MODEL ?=
PYTEST ?=
# --numprocesses 2: in two workers, of which one mostly waits (conftest.py says for what).
TOGETHER ?=
CHECKED := core plugins tests benchmarks conftest.py

# The first interpreter that is new enough and can make environments.
CAN := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
    $$p -c '$(CAN)' >/dev/null 2>&1 && { echo $$p; break; }; done)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PROJECTS := pyproject.toml core/pyproject.toml $(wildcard plugins/*/pyproject.toml)
SOURCES := $(shell find core/src plugins/*/src -name '*.py')
# What pip compiles; an editable installation has to be made anew when it changes.
COMPILED := core/hatch_build.py core/src/holdfast/_loops.c

help:
	@sed -n '/^#   make/s/^#   //p' Makefile

$(BIN)/python:
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11 or newer with its venv module is needed" \
	    "(on Debian: apt install python3-venv)." >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

# What a user installs. A developer's environment has it already, editable.
$(VENV)/.installed: $(PROJECTS) $(SOURCES) $(COMPILED) | $(BIN)/python
	@if [ ! -e $(VENV)/.developer ]; then echo "Installing Holdfast into $(VENV)"; $(PIP) install .; fi
	@touch $@

$(VENV)/.developer: tests/requirements.txt $(PROJECTS) $(COMPILED) | $(BIN)/python
	@echo "Installing Holdfast, editable, and the developers' tools into $(VENV)"
	@$(PIP) install -r tests/requirements.txt
	@$(PIP) check
	@touch $@

demo: $(VENV)/.installed
	@$(BIN)/holdfast demo

tools:
	@tests/install-tools

# The tools first: a C compiler is among them, and pip finds it.
setup: tools $(VENV)/.developer

# Apart, so that --keep-going tells all that is wrong and not only the first of it.
lint: lint-rules lint-format lint-types lint-words

lint-rules: $(VENV)/.developer
	$(BIN)/ruff check .

lint-format: $(VENV)/.developer
	$(BIN)/ruff format --check .

lint-types: $(VENV)/.developer
	$(BIN)/mypy $(CHECKED)

lint-words: $(VENV)/.developer
	$(BIN)/codespell Makefile README.md core docs plugins tests benchmarks

# A fault of style does not hide a broken test: the tests run in any case, and last.
test: setup
	@status=0; \
	$(MAKE) --no-print-directory --keep-going lint || { status=1; \
	    echo "The checks above found faults; the tests run all the same." >&2; }; \
	$(BIN)/pytest --timeout 300 $(TOGETHER) $(PYTEST) || status=1; \
	exit $$status

bench: setup
	$(BIN)/python -m benchmarks $(BENCH)

crash: setup
	$(BIN)/python -m tests.crash --seeds $(SEEDS)
	$(BIN)/python -m tests.crash --seeds $(SEEDS) --mistakes
	BLOCK_LOG_OPERATIONS=600 $(BIN)/pytest -s tests/test_block_log.py

# Without a wheel of atheris for this Python the fuzzing goes by chance.
fuzz: setup
	-@$(PIP) install --only-binary :all: "atheris>=3,<4"
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES)

model: setup
	$(BIN)/python -m tests.harness.models $(MODEL)
	$(BIN)/python -m tests.harness.wrong_rules

soak: setup
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

power: setup
	$(BIN)/python -m benchmarks.power replica primary --machines uml --rounds $(ROUNDS)

explore: $(VENV)/.developer
	@$(BIN)/python -m holdfast.testing.explorer $(EXPLORE)

# Root, QEMU and some minutes; the kernel is Debian's, the programs are this machine's.
GUEST ?= $(addprefix plugins/transport_nvmeof/tests/,test_md_kernel.py test_md_cluster.py test_kernel.py test_nvmet.py)
.PHONY: guest
guest: setup
	$(BIN)/python -m tests.guest $(abspath $(BIN))/python -m pytest -p no:cacheprovider -v -rs $(GUEST)
	$(BIN)/python -m plugins.transport_nvmeof.tests.outside

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
