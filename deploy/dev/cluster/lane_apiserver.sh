#!/usr/bin/env bash
# Tests against a real API server (tests/apiserver/conftest.py says which one).
# Exit status 77: none is here (the last line says why).
set -euo pipefail
cd "$(dirname "$0")/../../.."
bin=$(deploy/dev/cluster/build.sh where)
if [ -z "${KUBEBUILDER_ASSETS:-}${MEMKV_TEST_EXISTING_CLUSTER:-}" ] &&
    [ ! -e "$bin/kube-controller-manager" ]; then
    echo "no API server: KUBEBUILDER_ASSETS is not set and deploy/dev/cluster/build.sh did not end"
    exit 77
fi
# One process: each would start a server of its own.
exec .venv/bin/python -m pytest tests/apiserver --ignore=tests/apiserver/test_scale.py
