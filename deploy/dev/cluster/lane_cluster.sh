#!/usr/bin/env bash
# Tests on a real cluster: KUBECONFIG's, with MEMKV_TEST_IMAGE naming an image that its nodes can
# pull; or else one that is started here and ended afterwards, with the image of this tree.
# PYTEST_ARGS chooses tests. Exit status 77: there can be none here (the last line says why).
set -euo pipefail
cd "$(dirname "$0")/../../.."
folder=deploy/dev/cluster

if [ -n "${KUBECONFIG:-}" ]; then
    if [ -z "${MEMKV_TEST_IMAGE:-}" ]; then
        echo "KUBECONFIG is set: MEMKV_TEST_IMAGE must name an image its nodes can pull"
        exit 77
    fi
else
    [ ! -e /run/memkv-cluster ] || "$folder/cluster.sh" down
    # Without it the test of engines in pods is skipped, and says so.
    deploy/dev/vllm/setup.sh >/dev/null || true
    # Once: a tree that is edited meanwhile would be another image.
    MEMKV_TEST_IMAGE=$("$folder/image.sh" build)
    "$folder/image.sh" check "$MEMKV_TEST_IMAGE"
    trap '"$folder/cluster.sh" down' EXIT
    "$folder/cluster.sh" up 2
    "$folder/image.sh" all "$MEMKV_TEST_IMAGE"
    MEMKV_TEST_NEXT_IMAGE=$("$folder/image.sh" rename "$MEMKV_TEST_IMAGE" memkv.local/memkv:next)
    export MEMKV_TEST_NEXT_IMAGE
    export KUBECONFIG=/run/memkv-cluster/kubeconfig MEMKV_TEST_LOCAL_NODES=1
    PATH=$("$folder/build.sh" where):$PATH
fi
export MEMKV_TEST_IMAGE
# -s: the tests print how long things took.
# shellcheck disable=SC2086  # several words
.venv/bin/python -m pytest -s -o timeout=900 ${PYTEST_ARGS:-tests/cluster}
