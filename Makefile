# Every target sets up what it needs in .venv; a second run finds it there. Extra arguments: make test ARGS="-k windows".
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
ARGS ?=
PART ?=
VENV := .venv
PY := $(VENV)/bin/python
STREAMER := $(VENV)/bin/streamer
LOCAL_KAFKA := deploy/kafka/local_kafka.py
# What is not compiled at installation is compiled when it is first imported; most of it never is.
PIP := $(PY) -m pip --disable-pip-version-check install --quiet --no-compile
SERVICE := $(VENV)/.stamp-service
DEVELOP := $(VENV)/.stamp-develop
CODE := streamer export tests deploy
NATIVE := $(VENV)/.stamp-native
NATIVE_CODE := $(addprefix streamer/native/,Cargo.toml Cargo.lock pyproject.toml) $(wildcard streamer/native/src/*.rs)
NATIVE_IF_CARGO := $(if $(shell command -v cargo),$(NATIVE))
# Two files of tests at a time. Each has one thread for its sums, so that neither waits for a core of the other.
SIDE_BY_SIDE := -n 2 --dist loadfile
# Where cargo compiles, also in tests.
export CARGO_TARGET_DIR ?= $(CURDIR)/build/native
# Where Python keeps what it compiled, also where the environment forbids it beside the sources (as images do): tests start
# hundreds of processes, and each would compile all that it imports, for seconds.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX ?= $(CURDIR)/build/python

.PHONY: help demo native test accept simulate lint format bench kafka chaos requirements clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo; echo "parts of make accept:"
	@$(PYTHON) tests/accept.py --list

demo: $(SERVICE) ## Synthetic telemetry through the service, with an in-process broker: no Java, no torch
	@$(STREAMER) demo $(ARGS)

native: $(NATIVE) ## Build the native decoder of records and install it into .venv (needs cargo; optional)

test: export OMP_NUM_THREADS ?= 1
test: $(DEVELOP) $(NATIVE_IF_CARGO) ## All tests that fit in 30 minutes on two cores
	@$(PY) -m pytest $(SIDE_BY_SIDE) $(ARGS)

accept: $(DEVELOP) $(NATIVE_IF_CARGO) ## The long proofs, some hours on two cores; PART=chaos for one of them (parts are below)
	@$(PY) tests/accept.py $(PART) $(ARGS)

simulate: $(DEVELOP) ## Seeded schedules over a simulated cluster (ARGS="--seed 7 --schedules 200")
	@$(PY) -m tests.simulation $(ARGS)

lint: $(DEVELOP) ## Ruff (rules and format) and mypy (strict)
	@$(VENV)/bin/ruff check $(CODE)
	@$(VENV)/bin/ruff format --check $(CODE)
	@$(VENV)/bin/mypy --strict streamer export $(LOCAL_KAFKA)

format: $(DEVELOP) ## Let ruff format the code
	@$(VENV)/bin/ruff format $(CODE)

bench: $(SERVICE) ## Throughput, latency and memory against a naive loop, on a local Kafka or KAFKA_BOOTSTRAP
	@if [ -n "$${KAFKA_BOOTSTRAP:-}" ]; then $(STREAMER) bench $(ARGS); \
	else $(PY) $(LOCAL_KAFKA) -- $(STREAMER) bench $(ARGS); fi

kafka: ## A local Kafka until Ctrl-C (ARGS="--nodes 3", ARGS="--port 9092 --data runs/kafka")
	@exec $(PYTHON) $(LOCAL_KAFKA) $(ARGS)

chaos: $(DEVELOP) ## Faults injected on a real Kafka, short and long
	@$(PY) -m pytest -m chaos $(ARGS)

COMPILE := $(VENV)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header \
  --no-emit-index-url --no-emit-find-links

requirements: $(DEVELOP) ## Pin the image's dependencies anew, with their hashes (deploy/requirements*.txt)
	@$(PIP) --group pin
	@{ echo "# Everything the image installs, for any platform and Python >= 3.11. Made by: make requirements"; \
	  $(COMPILE) --extra demo --extra fast --extra schemas pyproject.toml; } > $(VENV)/requirements.txt
	@{ echo "# What builds the wheels that the image installs. Made by: make requirements"; \
	  $(PY) -c 'import tomllib; [print(*tomllib.load(open(each, "rb"))["build-system"]["requires"], sep="\n") for each in ("pyproject.toml", "streamer/native/pyproject.toml")]' \
	    | $(COMPILE) -; } > $(VENV)/requirements-build.txt
	@mv $(VENV)/requirements.txt $(VENV)/requirements-build.txt deploy/

clean: ## Remove the environment, caches and build outputs (Kafka's jars stay in the user's cache)
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	@find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1): make PYTHON=/path/to/python3.11" >&2; \
	  exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(SERVICE): $(VENV)/.stamp-venv pyproject.toml
	@echo "setting up $(VENV): the service and the demo's broker"
	@$(PIP) -e '.[demo,fast]'
	@touch $@

$(NATIVE): $(SERVICE) $(NATIVE_CODE)
	@command -v cargo >/dev/null || { echo "cargo is needed (rustup.rs); without it Python reads records" >&2; exit 1; }
	@echo "building the native decoder (a minute at the first time)"
	@$(PIP) --force-reinstall --no-deps ./streamer/native
	@touch $@

# Dependency groups need a newer pip than the one that came with Python 3.11.
$(DEVELOP): $(SERVICE)
	@echo "setting up $(VENV): torch and the tools of development (some minutes at the first time)"
	@$(PIP) --upgrade 'pip>=25.1'
	@$(PIP) -e '.[demo,fast,export,parquet,recipes]' --group test --group lint
	@touch $@
