#!/usr/bin/env bash
# `memkv demo` as a lane of continuous integration: it judges its own figures by its exit status.
set -euo pipefail
cd "$(dirname "$0")/../.."
if ! .venv/bin/python -c 'import memkv.cli.main' 2>/dev/null; then
    echo "this version has no command line yet"
    exit 77
fi
exec .venv/bin/memkv demo
