#!/usr/bin/env bash
# The operator with hundreds of nodes that kwok plays (tests/apiserver/test_scale.py).
# Exit status 77: none can be played here (the last line says why).
set -euo pipefail
cd "$(dirname "$0")/../../.."
bin=$(deploy/dev/cluster/build.sh where)
for name in kube-controller-manager kube-scheduler kwok; do
    if [ ! -e "$bin/$name" ]; then
        echo "no $name: deploy/dev/cluster/build.sh did not end"
        exit 77
    fi
done
exec .venv/bin/python -m pytest -s tests/apiserver/test_scale.py
