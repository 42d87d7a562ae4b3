# kvtier: `make` alone prints the targets.
PYTHON    ?= python3
TORCH     ?= torch==2.13.0
VENV      := .venv
BIN       := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install test lint format types cov load scenarios soak capacity shared-volume power-loss install-vllm findings e2e-vllm observe dashboards schemas mutants false-alarms bench bench-compare bench-gpu bench-docs bench-eviction fuzz-trailer clean

help: ## print this list
	@echo "usage: make TARGET [NAME=value ...]"; echo
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)$$/\1\t\2/p' $(MAKEFILE_LIST) | awk -F'\t' '{printf "  %-14s %s\n", $$1, $$2}'

install: $(INSTALLED) ## make .venv from the project's files (PYTHON=python3, TORCH=torch==2.13.0); done once

# torch comes first and alone: a dependency that merely asks for "torch" may pull gigabytes of another build.
$(INSTALLED): pyproject.toml kvtier/_batch.c
	@command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON) here; name a Python >= 3.11: make install PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $(PYTHON) is $$($(PYTHON) -V 2>&1), kvtier needs Python >= 3.11; name one: make install PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo "make: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

test: $(INSTALLED) ## run all tests but the slow ones (ARGS="-k name"; ARGS="-m slow" runs those)
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

lint: $(INSTALLED) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED) ## ruff: rewrite to the format, fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(INSTALLED) ## mypy, strict
	$(BIN)/mypy

cov: $(INSTALLED) ## all tests with the coverage of kvtier/
	$(BIN)/python -m pytest --cov --cov-report=term $(ARGS)

# Only what is given is passed on: the harness knows the defaults.
LOAD_OPTIONS = $(if $(TRACE),--trace "$(TRACE)") $(if $(ROOT_DIR),--root-dir "$(ROOT_DIR)") \
  $(if $(PROCESSES),--processes $(PROCESSES)) $(if $(DURATION),--seconds $(DURATION)) $(if $(TIER),--tier $(TIER)) \
  $(if $(SEED),--seed $(SEED)) $(if $(BLOCK_BYTES),--block-bytes $(BLOCK_BYTES))

load: $(INSTALLED) ## processes share one root under traffic (TRACE= ROOT_DIR= PROCESSES= DURATION= TIER= SEED= BLOCK_BYTES=)
	@$(BIN)/python -m harness run load $(LOAD_OPTIONS) $(ARGS)

observe: $(INSTALLED) ## watch a load run: Prometheus, and Grafana and Tempo where containers run (ARGS="--seconds 60")
	@$(BIN)/python -m harness observe $(ARGS)

dashboards: $(INSTALLED) ## write dashboards/*.json, the rules for Kubernetes and docs/metrics.md again
	$(BIN)/python dashboards/generate.py

schemas: ## fetch the schemas that dashboards/ is tested against (needs npm; without them those tests are skipped)
	dashboards/schemas.sh .schemas

SCENARIOS = contract load sharing determinism starvation crash faults

scenarios: $(INSTALLED) ## all scenarios but the long one, each with its verdicts (TIER=kvtier)
	@worst=0; for scenario in $(SCENARIOS); do echo "== $$scenario"; \
	  $(BIN)/python -m harness run $$scenario $(if $(TIER),--tier $(TIER)) --quiet $(ARGS) || worst=$$?; done; exit $$worst

soak: $(INSTALLED) ## an hour in which nothing may grow (DURATION=3600 TIER=kvtier)
	@$(BIN)/python -m harness run soak --seconds $(or $(DURATION),3600) $(if $(TIER),--tier $(TIER)) $(ARGS)

capacity: $(INSTALLED) ## ten minutes on a root that is always full (DURATION=600 WRITERS=8 EVICTORS=2 TIER=kvtier)
	@$(BIN)/python -m harness run capacity --seconds $(or $(DURATION),600) --processes $(or $(WRITERS),8) \
	  --evictors $(or $(EVICTORS),2) $(if $(TIER),--tier $(TIER)) $(ARGS)

shared-volume: $(INSTALLED) ## scenarios on two hosts that share a GlusterFS, MooseFS or NFS volume; root (FILE_SYSTEM=gluster TIER=kvtier SEED=)
	@$(BIN)/python -m harness.shared_volume $(if $(FILE_SYSTEM),--file-system $(FILE_SYSTEM)) $(if $(TIER),--tier $(TIER)) \
	  $(if $(SEED),--seed $(SEED)) $(ARGS)

power-loss: $(INSTALLED) ## what is there after the power failed in mid-store, on ext4 and XFS; root (SEED= ARGS="--failures snapshot")
	@$(BIN)/python -m harness run power_loss $(if $(SEED),--seed $(SEED)) $(ARGS)

install-vllm: .venv-vllm/.installed ## the real vLLM tier as a peer, in a venv of its own (PYTHON=python3)

.venv-vllm/.installed: $(wildcard harness/adapters/vllm_env/*)
	sh harness/adapters/vllm_env/install.sh $(PYTHON) .venv-vllm
	@touch $@

.venv-engine/.installed: $(wildcard harness/e2e/install.sh harness/e2e/constraints.txt)
	sh harness/e2e/install.sh $(PYTHON) .venv-engine
	@touch $@

e2e-vllm: $(INSTALLED) .venv-engine/.installed ## real vLLM engines on one root, pass by pass: generations must be equal
	@$(BIN)/python -m harness.e2e.run $(ARGS)

findings: $(INSTALLED) .venv-vllm/.installed ## every scenario's word on vLLM's tier and on kvtier; writes docs/findings-vllm-0.33.md
	@$(BIN)/python -m harness findings --write docs/findings-vllm-0.33.md $(if $(SEED),--seed $(SEED)) $(ARGS)

mutants: $(INSTALLED) ## tiers that are wrong on purpose: each must be convicted; writes docs/mutants.md (SEED=)
	@$(BIN)/python -m harness mutants --write docs/mutants.md $(if $(SEED),--seed $(SEED)) $(ARGS)

false-alarms: $(INSTALLED) ## right tiers in seeded short runs, also beside a busy neighbour: none may be convicted (RUNS=10 SEED=)
	@$(BIN)/python -m harness false-alarms $(if $(RUNS),--runs $(RUNS)) $(if $(SEED),--seed $(SEED)) $(ARGS)

BENCH_OPTIONS = $(if $(SIZE),--size $(SIZE)) $(if $(DIR),--dir "$(DIR)") $(if $(SAVE),--save --small runs/bench-small.json)
SMALL = tests/tiering/bench/test_small.py --benchmark-enable --benchmark-columns=median,iqr,ops,rounds --benchmark-sort=name

bench: $(INSTALLED) ## small parts, then the large table beside peer and device (SIZE=full|quick DIR=/tmp SAVE=1)
	@mkdir -p runs
	$(BIN)/python -m pytest $(SMALL) --benchmark-json=runs/bench-small.json $(ARGS)
	$(BIN)/python -m harness.bench table --out runs/bench.json $(BENCH_OPTIONS)

bench-compare: $(INSTALLED) ## is this checkout slower than a commit? exit code 0 no, 1 yes, 2 unknown (AGAINST=commit DIR=/tmp)
	$(BIN)/python -m harness.bench compare $(if $(AGAINST),--against "$(AGAINST)") $(if $(DIR),--dir "$(DIR)") $(ARGS)

bench-gpu: ## the GPU path on a CUDA device; also runs with PYTHON= alone, without .venv
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m pytest -m gpu tests/tiering -rs $(ARGS)

bench-eviction: $(INSTALLED) ## what a pass over a full root of FILES files costs loads meanwhile (FILES=1000000 DIR=/tmp)
	$(BIN)/python -m harness.bench eviction --files $(or $(FILES),1000000) $(if $(DIR),--dir "$(DIR)") $(ARGS)

fuzz-trailer: $(INSTALLED) ## the trailer parser under a coverage-guided fuzzer, atheris (SECONDS=300)
	@PYTHONPATH=. $(BIN)/python tests/tiering/fuzz_trailer.py -max_total_time=$(or $(SECONDS),300) -max_len=4200 $(ARGS)

bench-docs: $(INSTALLED) ## docs/benchmarks.md and its plots, from the results under tests/tiering/baselines
	$(BIN)/python -m harness.bench plots

clean: ## remove .venv and caches (not runs/)
	rm -rf $(VENV) .schemas build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .coverage .coverage.* htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
