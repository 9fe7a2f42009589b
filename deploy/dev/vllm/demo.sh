#!/usr/bin/env bash
# Two vLLM processes share KV through a pool on this machine (demo.py tells the story).
set -euo pipefail
cd "$(dirname "$0")/../../.."
MEMKV_VLLM_PYTHON=$(deploy/dev/vllm/setup.sh) || { printf '%s\n' "$MEMKV_VLLM_PYTHON"; exit 77; }
MEMKV_VLLM_MODELS=$(deploy/dev/vllm/setup.sh models)
export MEMKV_VLLM_PYTHON MEMKV_VLLM_MODELS
exec .venv/bin/python deploy/dev/vllm/demo.py "$@"
