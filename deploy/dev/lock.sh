#!/usr/bin/env bash
# Writes the pinned versions that every machine installs, with uv and without it alike.
# Run it after a change of the dependencies in pyproject.toml: `make lock`. Needs uv.
set -euo pipefail
cd "$(dirname "$0")/../.."

compile() {
    uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate \
        --no-emit-index-url pyproject.toml "$@"
}

compile --group dev --output-file deploy/dev/requirements.txt
compile --extra bench --extra plot --constraints deploy/dev/requirements.txt \
    --output-file deploy/dev/requirements-peers.txt

# What the image is made of: the same versions, and the sums of their files, which pip compares
# (--require-hashes). Files that an index signs for other platforms too are listed: arm64 builds.
for part in build run; do
    python3 deploy/dev/image_requirements.py "$part" | uv pip compile --quiet --universal \
        --python-version 3.11 --no-header --no-annotate --no-emit-index-url --generate-hashes \
        --constraints deploy/dev/requirements.txt --output-file "deploy/dev/requirements-image-$part.txt" -
done
