# Two commands for a newcomer, each installs what it needs: `make demo` and `make test`.
# `make help` lists the rest. .venv and build/ are made here; cold builds live in MEMKV_CACHE.

SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := .venv/bin
LANE := deploy/dev/lane.sh
export MEMKV_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/memkv
# Files of tests run side by side; they wait more than they compute.
TOGETHER := -n 4 --dist loadfile
# Tests that need a Kubernetes, a virtual machine or an inference engine run in their own lanes.
OWN_LANES := --ignore=tests/apiserver --ignore=tests/cluster --ignore=tests/vm \
    --ignore=tests/engines
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help demo test test-sanitize test-crash test-vm test-engines test-apiserver test-scale test-cluster \
    demo-vllm kubernetes cluster cluster-down bench bench-peers setup lock clean lint types layers unit proto format

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup ## run a pool on this machine, replay real requests, kill a node, show the figures
	@$(BIN)/memkv demo $(DEMO_ARGS)

test: lint types layers unit ## lint, types, layers and tests
	@echo "make test: all lanes passed"

lint: setup ## ruff over the whole tree
	@$(LANE) lint $(BIN)/ruff check .

format: setup ## rewrite Python in the house format
	@$(BIN)/ruff format .

types: setup ## mypy --strict, product and tests
	@$(LANE) types bash -c '$(BIN)/mypy && $(BIN)/mypy tests benchmarks docs'

layers: setup ## import contracts (.importlinter)
	@$(LANE) layers $(BIN)/lint-imports

unit: setup ## pytest; PYTEST_ARGS chooses
	@$(LANE) unit $(BIN)/python -m pytest $(TOGETHER) $(OWN_LANES) $(PYTEST_ARGS)

test-sanitize: setup ## native tests under AddressSanitizer, UBSan and ThreadSanitizer
	@deploy/dev/sanitize.sh

test-crash: setup ## long crash simulation; MEMKV_CRASH_SEEDS=FIRST:COUNT chooses the seeds
	@$(LANE) crash deploy/dev/crash.sh

test-vm: setup ## tests in a virtual machine: soft-RoCE, a raw NVMe drive, power cuts
	@$(LANE) vm deploy/dev/vm/lane_vm.sh

test-engines: setup ## tests that drive vLLM, LMCache and SGLang (installs them: 6 GB, once)
	@$(LANE) engines deploy/dev/engines/lane_engines.sh

demo-vllm: setup ## two vLLM processes share KV through a pool: times to the first token
	@deploy/dev/vllm/demo.sh $(DEMO_ARGS)

kubernetes: ## build a real Kubernetes from source, once (18 minutes; needs Go)
	@deploy/dev/cluster/build.sh

test-apiserver: setup ## tests against a real API server; KUBEBUILDER_ASSETS names another one
	@[ -n "$(KUBEBUILDER_ASSETS)$(MEMKV_TEST_EXISTING_CLUSTER)" ] || deploy/dev/cluster/build.sh
	@$(LANE) apiserver deploy/dev/cluster/lane_apiserver.sh

test-scale: setup ## the operator with MEMKV_SCALE_NODES=500 nodes that kwok plays
	@deploy/dev/cluster/build.sh
	@$(LANE) scale deploy/dev/cluster/lane_scale.sh

cluster: kubernetes ## start a Kubernetes of NODES=2 nodes on this machine (needs root)
	@deploy/dev/cluster/cluster.sh up $(NODES)

cluster-down: ## end that Kubernetes and remove what it left
	@deploy/dev/cluster/cluster.sh down

test-cluster: setup ## tests on a real cluster: that of KUBECONFIG, or one started on this machine
	@[ -n "$(KUBECONFIG)" ] || deploy/dev/cluster/build.sh
	@$(LANE) cluster deploy/dev/cluster/lane_cluster.sh

bench: setup ## measure a pool on this machine; BENCH_ARGS go to `memkv bench`
	@$(BIN)/memkv bench $(BENCH_ARGS)

bench-peers: ## measure beside Mooncake Store and Redis (installs them)
	@deploy/dev/setup.sh peers
	@$(BIN)/python benchmarks/peers.py $(BENCH_ARGS)

proto: setup ## write the gRPC stubs anew
	@$(BIN)/python proto/generate.py

setup: ## install what is missing and build .venv (the other targets do it by themselves)
	@deploy/dev/setup.sh

lock: ## pin the dependencies of pyproject.toml anew (needs uv)
	@deploy/dev/lock.sh

clean: ## remove .venv and everything built in this tree
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
