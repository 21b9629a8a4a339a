# Headrace. `make up` starts everything; `make help` lists the rest.
ENGINE ?= cpu
export ENGINE
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help up worker reload env demo docs test test-long chaos soak bench tune lint fmt lock clean dev

BOOTSTRAP := sh launcher/bootstrap.sh

help:  ## show this list
	@echo "make TARGET   (ENGINE=cpu|gpu|simulated, now $(ENGINE))"
	@sed -n 's/^\([a-z-]*\):.*##\(.*\)/  \1\t\2/p' Makefile

up:  ## install what is missing and start everything; stop it with Ctrl-C
	@exec $(BOOTSTRAP) -m launcher

worker:  ## add a worker to a running `make up`: make worker MODEL=smollm2
	@test -x .venv/bin/python || { echo "Headrace is not installed yet. Start it first:  make up" >&2; exit 1; }
	@exec .venv/bin/python -m launcher.worker $(MODEL)

reload:  ## apply changes of models.yaml to a running `make up`, without dropping a stream
	@exec sh launcher/reload.sh

demo:  ## show routes, the response cache and coalescing with two local models; needs no account
	@exec $(BOOTSTRAP) -m demo $(ARGS)

docs: dev  ## build the documentation as a site in build/docs; fails if a link is broken
	@exec .venv/bin/python -m docsite

env:  ## write .env with new secrets, for `docker compose up`
	@sh launcher/compose_env.sh

dev:
	@$(BOOTSTRAP) --dev

# By file in parallel processes; those that use a vLLM engine share a process (tests/support/scheduling.py).
# Without bytecode files, each process compiles all modules and rewrites all tests, which takes 20 s of CPU time.
PYTEST := env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test: dev model  ## run the test suite; ARGS are passed to pytest: make test ARGS="-k cancel"
	@exec $(PYTEST) $(ARGS)

test-long: dev model  ## run the long sweeps that `make test` runs a part of (docs/testing.md)
	@exec $(PYTEST) -m "long or hypothesis" --hypothesis-profile long --timeout 7200 $(ARGS)

.PHONY: model
model:
	@test "$(ENGINE)" = simulated || .venv/bin/python -m launcher.bundled_model SmolLM2-135M-Instruct

chaos: dev  ## inject faults while 10,000 jobs run: make chaos ARGS="--quick --seed 7"
	@exec .venv/bin/python -m chaos $(ARGS)

soak: dev  ## apply a steady load for 30 minutes, and fail on drift: make soak ARGS="--minutes 2 --rate 50"
	@exec .venv/bin/python -m soak $(ARGS)

bench: dev  ## run benchmarks and compare to the goals: make bench ARGS="--only relay --quick"
	@exec .venv/bin/python -m benchmarks $(ARGS)

tune:  ## measure which options of vLLM pay on this machine: make tune MODEL=smollm2 ARGS="--quick --for latency"
	@exec $(BOOTSTRAP) -m tune $(MODEL) $(ARGS)

lint: dev  ## check style, types and import rules
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

fmt: dev  ## format the code
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

lock:  ## compile pyproject.toml into requirements/*.txt; ARGS=--upgrade for new versions
	@python3 -m launcher.lock $(ARGS)

clean:  ## remove .venv and caches; keeps .headrace (your data)
	@if test -L .venv; then rm .venv; elif test -e .venv/headrace-environment; then rm -rf .venv; fi
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.headrace/*' -prune -exec rm -rf {} +
