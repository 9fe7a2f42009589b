#!/usr/bin/env bash
# Makes what the tests with LMCache and SGLang need, and prints the path of a Python interpreter
# that has the engine and this tree's MemKV:
#
#   setup.sh lmcache|sglang          does what is still missing; a second run takes half a second
#   setup.sh lmcache|sglang where    prints the path, changes nothing; exit status 77 without it
#
# Each is a folder of a hundred megabytes, MEMKV_CACHE/ENGINE/VERSION/site, laid over the packages
# of the vLLM environment (deploy/dev/vllm/setup.sh): they use its torch, and versions of what they
# bring themselves cannot disturb it.
# Exit status 77: cannot be had here; the last line of output is the reason.
set -euo pipefail
cd "$(dirname "$0")/../../.."

say() { printf '%s: %s\n' "$NAME" "$*" >&2; }
cannot() { printf '%s\n' "$*"; exit 77; }

NAME=${1:-}
case $NAME in
    lmcache) IMPORTS='import lmcache.v1.distributed.storage_manager' ;;
    sglang) IMPORTS='import sglang.srt.managers.cache_controller' ;;
    *) cannot "unknown engine '$NAME' (known: lmcache, sglang)" ;;
esac
LOCK=deploy/dev/engines/$NAME.txt
VERSION=$(sed -n "s/^$NAME==//p" "$LOCK")
HOME_OF=${MEMKV_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/memkv}/$NAME/$VERSION
SITE=$HOME_OF/site
FRONT=build/$NAME
DISK_MIB=500
unset VIRTUAL_ENV

is_made() { [ "$(cat "$1/.memkv-stamp" 2>/dev/null)" = "$2" ]; }
site_key() { { "$1" -c 'import sys; print(sys.version)'; cat "$LOCK"; } | sha256sum | cut -c1-20; }
front_key() { printf '%s %s %s\n' "$PWD" "$SITE" "$1"; }
where() { printf '%s\n' "$PWD/$FRONT/bin/python"; }

make_site() {
    local key free uv
    key=$(site_key "$1")
    is_made "$SITE" "$key" && return
    mkdir -p "$HOME_OF"
    free=$(df -Pm "$HOME_OF" | awk 'NR == 2 { print $4 }')
    [ "$free" -ge "$DISK_MIB" ] || cannot "$NAME needs $DISK_MIB MiB in $HOME_OF, $free are free"
    say "installing $NAME $VERSION into $SITE"
    rm -rf "$SITE"
    uv=$(ls "$HOME_OF"/../../vllm/*/uv/bin/uv 2>/dev/null | head -n 1) || true
    uv=${uv:-$(command -v uv || true)}
    [ -n "$uv" ] || cannot "there is no uv to install $NAME with"
    "$uv" pip install -q --python "$1" --target "$SITE" --no-deps -r "$LOCK" >&2 ||
        cannot "$NAME $VERSION could not be installed from the package index"
    printf '%s\n' "$key" >"$SITE/.memkv-stamp"
}

# The engine's own packages come first, then what stands in front of vLLM's.
make_front() {
    local key site
    key=$(front_key "$1")
    is_made "$FRONT" "$key" && return
    rm -rf "$FRONT"
    "$1" -m venv --without-pip "$FRONT"
    site=$("$FRONT/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    cat >"$site/memkv-engine.pth" <<PTH
import site; site.addsitedir('$SITE')
import site; site.addsitedir('${1%/bin/python}/lib/${site##*/lib/}')
PTH
    OMP_NUM_THREADS=1 "$FRONT/bin/python" -c "$IMPORTS, memkv._hotpath" >/dev/null ||
        cannot "$FRONT/bin/python cannot import $NAME and memkv"
    printf '%s\n' "$key" >"$FRONT/.memkv-stamp"
}

case ${2:-} in
    '')
        vllm=$(deploy/dev/vllm/setup.sh) || { printf '%s\n' "$vllm"; exit 77; }
        mkdir -p "$HOME_OF"
        exec 8>"$HOME_OF/.lock"
        flock 8
        make_site "$vllm"
        make_front "$vllm"
        where
        ;;
    where)
        vllm=$(deploy/dev/vllm/setup.sh where) || { printf '%s\n' "$vllm"; exit 77; }
        is_made "$SITE" "$(site_key "$vllm")" && is_made "$FRONT" "$(front_key "$vllm")" ||
            cannot "no $NAME here yet: run deploy/dev/engines/setup.sh $NAME"
        where
        ;;
    *) cannot "unknown argument '$2' (known: where)" ;;
esac
