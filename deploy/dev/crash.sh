#!/usr/bin/env bash
# The long crash run: the tests of tests/crash over more seeds than `make test` takes.
# MEMKV_CRASH_SEEDS=FIRST:COUNT chooses them; a failure prints the seed that shows it again.
set -euo pipefail
cd "$(dirname "$0")/../.."
if ! compgen -G 'tests/crash/test_*.py' >/dev/null; then
    echo "no tests in tests/crash"
    exit 77
fi
export MEMKV_CRASH_SEEDS=${MEMKV_CRASH_SEEDS:-1000000:200000}
echo "crash points FIRST:COUNT = $MEMKV_CRASH_SEEDS"
exec .venv/bin/python -m pytest -o timeout=1800 tests/crash
