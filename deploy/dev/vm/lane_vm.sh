#!/usr/bin/env bash
# Tests in the virtual machine, and of what its power cuts leave. PYTEST_ARGS chooses tests.
# Exit status 77: there can be no such machine here (the last line says why).
set -euo pipefail
cd "$(dirname "$0")/../../.."

deploy/dev/vm/build.sh
# The guest sees the tree read-only: what is not compiled now is compiled in each of its processes.
.venv/bin/python -m compileall -q dataplane proto .venv/lib/python3.*/site-packages >/dev/null ||
    true # some packages ship templates that are no Python
# -s: the tests print what they measured, and the log of the machine. The first test is all that runs
# inside one boot: it may take far longer than what pytest takes for a hang.
# shellcheck disable=SC2086  # several words
.venv/bin/python -m pytest -s -o faulthandler_timeout=0 ${PYTEST_ARGS:-tests/vm}
