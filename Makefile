# Each target sets up what it needs; a second call starts at once.
#   make demo                     the whole way on the corpus that the repository ships
#   make small CORPUS=DIR         the same on NCBI's files below DIR, 12M parameters
#   make test                     the tests;  make test-slow: with those over 20 seconds
#   make test-jax                 those of what another JAX or Python can break: kernels, step, training
#   make test-faults              kills, full disks, lost hosts, ...: what can happen to a run
#   make bench-data CORPUS=DIR    speed beside peers, memory, cost as the corpus grows
#   make compilers                what compiles for TPUs and GPUs that are not here, 1 GB
#   make bench-cpu                a training step on this CPU beside PyTorch's
#   make bench-decode             generation on this CPU beside transformers'
#   make bench-asking             answers to multiple choice on this CPU beside transformers'
#   make bench-kernels            attention on each chip beside peers: static cycles, GPU times
#   make bench-saves              saves and restores of the 125M state, beside the disk's own speed
#   make bench-export             the 2.7B model to Hugging Face, beside cp: time and memory
#   make lint                     ruff and pyright;  make golden: renew tests/golden
#   make clean                    caches;  make clean-runs: also every model that demo and small made

PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
  $$p -c 'import ensurepip' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
KERNELS_VENV ?= $(if $(wildcard .venv312/bin/python),.venv312,$(VENV))
RUNS ?= runs
CPUS := $(shell nproc 2>/dev/null || echo 2)
TESTS := $(VENV)/bin/python -m pytest -n $(CPUS) --dist worksteal

export JAX_PLATFORMS ?= cpu
# Huge pages: XLA:CPU takes the memory of a step anew for each one, and in pages of 4 KiB the system
# spends a sixth of the processor time of training, and half of that of a restore, on handing it out.
demo small bench-cpu bench-decode bench-asking bench-saves: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: setup demo small test test-slow test-jax test-faults bench-data bench-cpu bench-decode bench-asking bench-saves bench-export compilers bench-kernels lint golden clean clean-runs

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt requirements-dev.txt
	@$(if $(PYTHON),,echo "error: no Python with venv found; install Python 3.11 or 3.12, or say make PYTHON=..."; exit 2)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else f"error: Python 3.11 or 3.12 is needed, this is {v[0]}.{v[1]}; say make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(VENV)/bin/pip check
	touch $@

demo: setup
	$(VENV)/bin/python -m launch.local --config=configs/demo.py --corpus=data/sample --output=$(RUNS)/demo

small: setup
	@test -n "$(CORPUS)" || { echo "error: name the folder of NCBI's files: make small CORPUS=DIR"; exit 2; }
	$(VENV)/bin/python -m launch.local --config=configs/small.py --corpus=$(CORPUS) --output=$(RUNS)/small

test: setup
	$(TESTS) -m "not slow"

test-slow: setup
	$(TESTS)

test-jax: setup
	$(TESTS) -m "not slow" $(patsubst %,tests/test_%.py, attention attention_gpu attention_streaming \
	  checkpoint compile compilers_counts config cross_entropy dropout keep objective optimizer parse \
	  plan plan_finetune plan_golden plan_memory plan_sweep products records step structure \
	  train)

test-faults: setup
	$(TESTS) --durations=0 --durations-min=20 $(wildcard $(patsubst %,tests/test_%.py, \
	  faults faults_processes processes train checkpoint cloud_run watch))

bench-data: setup
	@test -n "$(CORPUS)" || { echo "error: name the folder of NCBI's files: make bench-data CORPUS=DIR"; exit 2; }
	test -d .venv-bench || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	.venv-bench/bin/python -m data.bench --corpus=$(CORPUS)
	.venv-bench/bin/python -m data.bench_scale --corpus=$(CORPUS)

compilers: $(VENV)/.compilers

%/.compilers: requirements-kernels.txt requirements.txt
	test -x $*/bin/python || $(MAKE) setup VENV=$*
	$*/bin/pip install --quiet --disable-pip-version-check -r requirements-kernels.txt
	touch $@

# Peers' figures are of the JAX that Python 3.12 has; the record names the versions it was made with.
bench-kernels: $(KERNELS_VENV)/.compilers
	$(KERNELS_VENV)/bin/python -m biomedlm_jax.speed.kernels --output=$(RUNS)/bench-kernels

bench-saves: setup
	$(VENV)/bin/python -m biomedlm_jax.speed.saves --output=$(RUNS)/bench-saves

bench-export: setup
	$(VENV)/bin/python -m biomedlm_jax.speed.export --output=$(RUNS)/bench-export

bench-cpu: setup
	$(VENV)/bin/python -m biomedlm_jax.speed.cpu --output=$(RUNS)/bench-cpu

bench-decode: setup
	$(VENV)/bin/python -m biomedlm_jax.speed.decode --output=$(RUNS)/bench-decode

bench-asking: setup
	$(VENV)/bin/python -m biomedlm_jax.speed.asking --output=$(RUNS)/bench-asking

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

golden: setup
	$(VENV)/bin/python -m pytest -k golden --renew
	$(if $(wildcard $(KERNELS_VENV)/.compilers),$(KERNELS_VENV)/bin/python -m pytest tests/test_plan_golden.py --renew)

clean:
	rm -rf .pytest_cache .ruff_cache .hypothesis

clean-runs:
	rm -rf $(RUNS)
