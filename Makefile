# kvtier: `make` alone prints the targets.
PYTHON    ?= python3
TORCH     ?= torch==2.13.0
PEER      ?= vllm
DEV       := .venv
# A target that runs traffic needs neither torch nor the developers' tools: it uses the large environment only if it exists.
RUN_ONLY  := .venv-run
RUN       := $(if $(wildcard $(DEV)/.installed),$(DEV),$(RUN_ONLY))
DIST      := dist

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install install-run test test-fast ci-matrix lint format types cov load scenarios interleavings soak capacity shared-volume power-loss install-peer install-vllm conformance findings e2e-vllm observe dashboards schemas mutants false-alarms bench bench-compare bench-gpu bench-gpu-compare bench-docs docs-check bench-eviction fuzz-trailer dist clean

help: ## print this list
	@echo "usage: make TARGET [NAME=value ...]"; echo
	@sed -nE 's/^([a-z0-9-]+):[^#]*## (.*)$$/\1\t\2/p' $(MAKEFILE_LIST) | awk -F'\t' '{printf "  %-17s %s\n", $$1, $$2}'

install: $(DEV)/.installed ## make .venv, with torch, once: for tests and GPU work (PYTHON=python3 TORCH=torch==2.13.0)

install-run: $(RUN_ONLY)/.installed ## make .venv-run, without torch, once: for load, scenarios and observe (PYTHON=python3)

$(DEV)/.installed: EXTRAS = dev
$(RUN_ONLY)/.installed: EXTRAS = cli,faults,harness,tracing

# torch is installed first and alone: a dependency on plain "torch" may install gigabytes of another build.
$(DEV)/.installed $(RUN_ONLY)/.installed: pyproject.toml setup.py kvtier/fs/_native.c
	@command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON) here; name a Python >= 3.11: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $(PYTHON) is $$($(PYTHON) -V 2>&1), kvtier needs Python >= 3.11; name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo "make: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(@D)
	$(if $(filter $(DEV),$(@D)),$(@D)/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)")
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$(EXTRAS)]"
	@touch $@

test: $(DEV)/.installed ## run all tests but the slow ones (ARGS="-k name"; ARGS="-m slow" runs the slow ones)
	$(DEV)/bin/python -m pytest -m "not slow" $(ARGS)

# Unit tests of the tier, of the harness's core and checkers, and of the layout; without the files that start commands.
FAST = $(addprefix tests/tiering/,kvtier harness/checkers harness/core test_house.py test_words.py) \
  $(addprefix --ignore=tests/tiering/,harness/core/test_limits.py harness/core/test_free_space.py \
    kvtier/test_exit_codes.py kvtier/ops/test_cli.py)

test-fast: $(DEV)/.installed ## the unit tests of kvtier/ and of the harness's core and checkers, about a minute (ARGS="-k name")
	$(DEV)/bin/python -m pytest -m "not slow" $(FAST) $(ARGS)

PYTHONS = 3.11 3.12 3.13 3.14

ci-matrix: ## `make test` on each Python from 3.11 to 3.14 that this machine has, in .venv-VERSION (PYTHONS="3.11 3.14")
	@worst=0; ran=; absent=; for version in $(PYTHONS); do \
	  if ! python$$version -c "" >/dev/null 2>&1; then absent="$$absent $$version"; continue; fi; \
	  echo "== Python $$version"; ran="$$ran $$version"; \
	  $(MAKE) --no-print-directory test DEV=.venv-$$version PYTHON=python$$version || { worst=1; echo "== Python $$version: FAILED"; }; \
	done; \
	echo "ci-matrix: ran on:$${ran:- none}; not installed:$${absent:- none}"; [ -n "$$ran" ] && exit $$worst; \
	echo "ci-matrix: no tests ran; install one of these: $(PYTHONS)" >&2; exit 1

lint: $(DEV)/.installed ## ruff: rules and format
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .

format: $(DEV)/.installed ## ruff: rewrite to the format, fix what it can
	$(DEV)/bin/ruff check --fix .
	$(DEV)/bin/ruff format .

types: $(DEV)/.installed ## mypy, strict
	$(DEV)/bin/mypy

cov: $(DEV)/.installed ## all tests with the coverage of kvtier/
	$(DEV)/bin/python -m pytest --cov --cov-report=term $(ARGS)

# Only given values are passed on; the harness has the defaults.
LOAD_OPTIONS = $(if $(TRACE),--trace "$(TRACE)") $(if $(ROOT_DIR),--root-dir "$(ROOT_DIR)") \
  $(if $(PROCESSES),--processes $(PROCESSES)) $(if $(DURATION),--seconds $(DURATION)) $(if $(TIER),--tier $(TIER)) \
  $(if $(SEED),--seed $(SEED)) $(if $(BLOCK_BYTES),--block-bytes $(BLOCK_BYTES))

load: $(RUN)/.installed ## processes share one root under traffic (TRACE= ROOT_DIR= PROCESSES= DURATION= TIER= SEED= BLOCK_BYTES=)
	@$(RUN)/bin/python -m harness run load $(LOAD_OPTIONS) $(ARGS)

observe: $(RUN)/.installed ## watch a run of `make load`: Prometheus, and Grafana and Tempo where containers run (ARGS="--seconds 60")
	@$(RUN)/bin/python -m harness observe $(ARGS)

dashboards: $(DEV)/.installed ## generate dashboards/*.json, the rules for Kubernetes and docs/metrics.md
	$(DEV)/bin/python dashboards/generate.py

schemas: ## fetch the schemas for the tests of dashboards/ (needs npm; without the schemas those tests are skipped)
	dashboards/schemas.sh .schemas

scenarios: $(RUN)/.installed ## the scenarios of a few minutes that need no root, each with its verdicts (TIER=kvtier)
	@$(RUN)/bin/python -m harness conform $(or $(TIER),kvtier) --full --quiet $(ARGS)

soak: $(RUN)/.installed ## an hour of traffic; memory, descriptors, threads and files must not grow (DURATION=3600 TIER=kvtier)
	@$(RUN)/bin/python -m harness run soak --seconds $(or $(DURATION),3600) $(if $(TIER),--tier $(TIER)) $(ARGS)

capacity: $(RUN)/.installed ## ten minutes on a root that is always full (DURATION=600 WRITERS=8 EVICTORS=2 TIER=kvtier)
	@$(RUN)/bin/python -m harness run capacity --seconds $(or $(DURATION),600) --processes $(or $(WRITERS),8) \
	  --evictors $(or $(EVICTORS),2) $(if $(TIER),--tier $(TIER)) $(ARGS)

shared-volume: $(RUN)/.installed ## scenarios on two hosts that share a GlusterFS, MooseFS or NFS volume; needs root (FILE_SYSTEM=gluster TIER=kvtier SEED=)
	@$(RUN)/bin/python -m harness shared-volume $(if $(FILE_SYSTEM),--file-system $(FILE_SYSTEM)) $(if $(TIER),--tier $(TIER)) \
	  $(if $(SEED),--seed $(SEED)) $(ARGS)

interleavings: $(RUN)/.installed ## small programs in every order of their system calls that can differ, kvtier's native and Python path (TIER=kvtier ARGS=--long)
	@$(RUN)/bin/python -m harness explore --tier $(or $(TIER),kvtier) $(ARGS)
	$(if $(filter kvtier,$(or $(TIER),kvtier)),@$(RUN)/bin/python -m harness explore --tier kvtier --tier-option compiled=false $(ARGS))

power-loss: $(RUN)/.installed ## blocks on ext4 and XFS after a power loss during stores; needs root (SEED= ARGS="--failures snapshot")
	@$(RUN)/bin/python -m harness run power_loss $(if $(SEED),--seed $(SEED)) $(ARGS)

install-peer: .venv-$(PEER)/.installed ## install a tier of another project in .venv-PEER (PEER=vllm|lmcache|sglang|aibrix PYTHON=python3)

install-vllm: .venv-vllm/.installed ## the same for vLLM

.venv-%/.installed: harness/adapters/%_env/install.sh harness/adapters/%_env/requirements.txt
	sh $< $(PYTHON) $(@D)
	@touch $@

.venv-engine/.installed: $(wildcard harness/e2e/install.sh harness/e2e/constraints.txt)
	sh harness/e2e/install.sh $(PYTHON) .venv-engine
	@touch $@

e2e-vllm: $(RUN)/.installed .venv-engine/.installed ## real vLLM engines on one root, pass by pass: generations must be equal
	@$(RUN)/bin/python -m harness e2e-vllm $(ARGS)

conformance: $(RUN)/.installed .venv-$(PEER)/.installed ## the suite of docs/conformance.md on a peer and on the controls (PEER=lmcache SEED=)
	@$(RUN)/bin/python -m harness conformance $(PEER) --write docs/findings $(if $(SEED),--seed $(SEED)) $(ARGS)
	@$(RUN)/bin/python -m harness docs conformance

findings: $(RUN)/.installed .venv-vllm/.installed ## the verdict of every scenario on vLLM's tier and on kvtier; writes docs/findings-vllm-0.33.md
	@$(RUN)/bin/python -m harness findings --write docs/findings-vllm-0.33.md $(if $(SEED),--seed $(SEED)) $(ARGS)

mutants: $(RUN)/.installed ## tiers with one defect each, which must be detected; writes docs/mutants.md (SEED=)
	@$(RUN)/bin/python -m harness mutants --write docs/mutants.md $(if $(SEED),--seed $(SEED)) $(ARGS)

false-alarms: $(RUN)/.installed ## correct tiers in short seeded runs under hostile conditions: each must pass (DURATION= RUNS= SEED=)
	@$(RUN)/bin/python -m harness false-alarms $(if $(RUNS),--runs $(RUNS)) $(if $(DURATION),--duration $(DURATION)) $(if $(SEED),--seed $(SEED)) $(ARGS)

BENCH_OPTIONS = $(if $(SIZE),--size $(SIZE)) $(if $(DIR),--dir "$(DIR)") $(if $(SAVE),--save --small runs/bench-small.json)
SMALL = tests/tiering/benchmarks/test_small.py --benchmark-enable --benchmark-columns=median,iqr,ops,rounds --benchmark-sort=name

bench: $(DEV)/.installed ## benchmarks of small parts, then the table with peer and device (SIZE=full|quick DIR=/tmp); SAVE=1 keeps it in docs/benchmarks.md
	@mkdir -p runs
	$(DEV)/bin/python -m pytest $(SMALL) --benchmark-json=runs/bench-small.json $(ARGS)
	$(DEV)/bin/python -m harness bench table --out runs/bench.json $(BENCH_OPTIONS)
	$(if $(SAVE),$(DEV)/bin/python -m harness bench plots)

bench-compare: $(DEV)/.installed ## is this checkout slower than a commit? exit code 0 no, 1 yes, 2 inconclusive (AGAINST=commit DIR=/tmp)
	$(DEV)/bin/python -m harness bench compare $(if $(AGAINST),--against "$(AGAINST)") $(if $(DIR),--dir "$(DIR)") $(ARGS)

bench-gpu: ## the GPU path on a CUDA device; needs no .venv: a PYTHON= with torch, pytest and xxhash does (hypothesis: more tests)
	$(if $(wildcard $(DEV)/bin/python),$(DEV)/bin/python,$(PYTHON)) -m pytest -m gpu tests/tiering -rs $(ARGS)

bench-gpu-compare: ## the GPU copy beside its candidates in ten minutes; exit code 2 without a CUDA device (PYTHON= OUT=runs/gpu)
	@PYTHON=$(or $(if $(filter file,$(origin PYTHON)),$(wildcard $(DEV)/bin/python)),$(PYTHON)) OUT="$(or $(OUT),runs/gpu)" tests/tiering/benchmarks/gpu/run.sh

bench-eviction: $(DEV)/.installed ## the cost for loads of an eviction pass over a root of FILES files (FILES=1000000 DIR=/tmp)
	$(DEV)/bin/python -m harness bench eviction --files $(or $(FILES),1000000) $(if $(DIR),--dir "$(DIR)") $(ARGS)

fuzz-trailer: $(DEV)/.installed ## the trailer parser under a coverage-guided fuzzer, atheris (SECONDS=300)
	@PYTHONPATH=. $(DEV)/bin/python tests/tiering/kvtier/fs/fuzz_trailer.py -max_total_time=$(or $(SECONDS),300) -max_len=4200 $(ARGS)

docs-check: $(DEV)/.installed ## generated pages equal what their generators write; links, quotes and words
	$(DEV)/bin/python -m pytest -q tests/tiering/test_generated.py tests/tiering/test_docs.py tests/tiering/test_words.py tests/tiering/dashboards $(ARGS)

bench-docs: $(DEV)/.installed ## docs/benchmarks.md and its plots, from the results under tests/tiering/baselines
	$(DEV)/bin/python -m harness bench plots

# PATH: auditwheel calls patchelf.
dist: $(DEV)/.installed ## the release: a manylinux wheel for any Python >= 3.11 and an sdist, checked (DIST=dist)
	rm -rf $(DIST)/raw $(DIST)/kvtier-*
	$(DEV)/bin/python -m build --outdir $(DIST)/raw
	PATH="$(abspath $(DEV))/bin:$$PATH" $(DEV)/bin/python -m auditwheel repair --wheel-dir $(DIST) $(DIST)/raw/*.whl
	mv $(DIST)/raw/*.tar.gz $(DIST)
	rm -r $(DIST)/raw
	$(DEV)/bin/python -m twine check --strict $(DIST)/*

clean: ## remove .venv, .venv-run, the environments of ci-matrix and caches (not runs/)
	rm -rf $(DEV) $(RUN_ONLY) $(addprefix .venv-,$(PYTHONS)) .schemas build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .coverage .coverage.* htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
