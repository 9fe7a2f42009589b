#!/usr/bin/env bash
# The long crash run: the tests of tests/crash over more seeds than `make test` takes.
# MEMKV_CRASH_SEEDS=FIRST:COUNT chooses them; a failure prints the seed that shows it again.
# MEMKV_CRASH_KILLS is how often a real node is killed in the middle of puts.
# Beside them every request of the operator fails in each way, where `make test` takes one of them.
set -euo pipefail
cd "$(dirname "$0")/../.."
if ! compgen -G 'tests/crash/test_*.py' >/dev/null; then
    echo "no tests in tests/crash"
    exit 77
fi
export MEMKV_CRASH_SEEDS=${MEMKV_CRASH_SEEDS:-1000000:42400}
export MEMKV_CRASH_KILLS=${MEMKV_CRASH_KILLS:-50} MEMKV_FAULT_CASES=all
echo "crash points FIRST:COUNT = $MEMKV_CRASH_SEEDS, kills of a real node = $MEMKV_CRASH_KILLS"
exec .venv/bin/python -m pytest -n 2 --dist worksteal -o timeout=1800 \
    tests/crash tests/unit/operator/test_faults.py
