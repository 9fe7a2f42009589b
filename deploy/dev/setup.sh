#!/usr/bin/env bash
# Makes .venv ready: system packages, pinned Python packages, MemKV itself (editable).
#
#   setup.sh            does what is still missing; a second run takes a fraction of a second
#   setup.sh missing    prints the Debian packages that are missing, changes nothing
#   setup.sh peers      also installs what `make bench-peers` measures against
#
# With uv or without it the same versions are installed. PYTHON=/path/to/python chooses one.
set -euo pipefail
cd "$(dirname "$0")/../.."

REQUIREMENTS=deploy/dev/requirements.txt
PEERS=deploy/dev/requirements-peers.txt
VENV=.venv
PYTHON_MIN='(3, 11)'

# make puts .venv first on PATH; what makes .venv anew must not come from it.
PATH=${PATH//"$PWD/$VENV/bin:"/}

say() { printf 'setup: %s\n' "$*" >&2; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# A shim of pyenv exists for versions that are not active and fails when run, so each candidate is
# run; sys.executable is then the interpreter itself, whatever `python3` on PATH was.
python_at() {
    "$1" -c "import sys; sys.version_info >= $PYTHON_MIN or sys.exit(1); print(sys.executable)" \
        2>/dev/null
}

# Can this interpreter make virtual environments and compile extensions?
python_is_complete() {
    "$1" - >/dev/null 2>&1 <<'PY'
import ensurepip, os, sysconfig, venv
assert os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))
PY
}

find_python() {
    local candidate path first=''
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        path=$(python_at "$candidate") || continue
        if python_is_complete "$path"; then printf '%s\n' "$path"; return; fi
        first=${first:-$path}
    done
    if [ -z "$first" ] && [ -z "${PYTHON:-}" ] && have uv; then
        first=$(uv python find --no-project '>=3.11' 2>/dev/null) || first=''
    fi
    printf '%s\n' "$first"
}

have_header() {
    if have cc; then
        printf '#include <%s>\n' "$1" | cc -E -x c - >/dev/null 2>&1
    else
        [ -e "/usr/include/$1" ] || compgen -G "/usr/include/*-linux-gnu/$1" >/dev/null
    fi
}

# Prints the Debian packages this machine lacks. Names carry the version of the interpreter that
# will be used: python3-dev may belong to another one.
missing_packages() {
    local python=$1 version
    have cc || echo gcc
    have_header stdio.h || echo libc6-dev
    have_header liburing.h || echo liburing-dev
    have_header openssl/ssl.h || echo libssl-dev
    have_header xxhash.h || echo libxxhash-dev
    have_header blake2.h || echo libb2-dev
    if [ -z "$python" ]; then
        printf 'python3\npython3-dev\npython3-venv\n'
    elif ! python_is_complete "$python"; then
        version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
        printf '%s-dev\n%s-venv\n' "$version" "$version"
    fi
}

apt_install() {
    export DEBIAN_FRONTEND=noninteractive
    local install=(apt-get install -y -q --no-install-recommends "$@")
    say "apt-get install $*"
    "${install[@]}" >/dev/null 2>&1 || { apt-get update -q >/dev/null && "${install[@]}" >&2; }
}

install_packages() {
    [ $# -gt 0 ] || return 0
    if [ "$(id -u)" = 0 ] && have apt-get; then
        apt_install "$@" || die "apt-get could not install: $*"
    else
        die "this machine lacks what the build needs. Install it and run make again:
    sudo apt-get install -y $*
On a distribution without apt install the packages of the same meaning."
    fi
}

sum_of() { sha256sum "$@" | sha256sum | cut -c1-20; }

native_sources() {
    find dataplane/native -type f \( -name '*.pyx' -o -name '*.px[id]' -o -name '*.[ch]' \
        -o -name CMakeLists.txt \) | LC_ALL=C sort
}

is_done() { [ -x "$VENV/bin/python" ] && [ "$(cat "$VENV/.stamp-$1" 2>/dev/null)" = "$2" ]; }
mark_done() { printf '%s\n' "$2" >"$VENV/.stamp-$1"; }

pip_install() {
    if have uv; then
        uv pip install --quiet --python "$VENV/bin/python" "$@"
    else
        "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    fi
}

make_venv() {
    local python=$1
    # Kept when it still runs here: a moved or half-made one is built anew.
    if "$VENV/bin/python" -c "import sys; assert sys.version_info >= $PYTHON_MIN" 2>/dev/null &&
        { have uv || "$VENV/bin/python" -m pip --version >/dev/null 2>&1; }; then
        return
    fi
    say "making $VENV with $python"
    rm -rf "$VENV"
    if have uv; then
        uv venv --quiet --no-project --python "$python" "$VENV"
    else
        "$python" -m venv "$VENV"
    fi
}

# PYTHON=... asks for another interpreter than the one .venv was made with: start over.
drop_other_python() {
    [ -n "${PYTHON:-}" ] && [ -x "$VENV/bin/python" ] || return 0
    local version='import sys; print(sys.version)'
    if [ "$("$PYTHON" -c "$version" 2>&1)" != "$("$VENV/bin/python" -c "$version" 2>&1)" ]; then
        rm -rf "$VENV"
    fi
}

environment_key() { printf '%s %s\n' "$PWD" "$(sum_of "$REQUIREMENTS" deploy/dev/setup.sh)"; }
native_key() { printf '%s %s\n' "$(environment_key)" "$(native_sources | xargs cat pyproject.toml |
    sum_of)"; }

setup_environment() {
    drop_other_python
    is_done environment "$(environment_key)" && return
    local python packages
    python=$(find_python)
    mapfile -t packages < <(missing_packages "$python")
    install_packages "${packages[@]}"
    python=$(find_python)
    [ -n "$python" ] || die "no Python 3.11 or later found (tried ${PYTHON:-python3, python3.11 \
to python3.14}). Install one, or say PYTHON=/path/to/python make ..."
    make_venv "$python"
    say "installing the pinned Python packages $(have uv && echo with uv || echo with pip)" \
        "(a minute or two)"
    pip_install -r "$REQUIREMENTS"
    mark_done environment "$(environment_key)"
}

# cmake and ninja come as wheels: their versions are pinned like the rest.
setup_memkv() {
    is_done memkv "$(native_key)" && return
    say "building MemKV and its native module"
    PATH="$PWD/$VENV/bin:$PATH" pip_install --no-build-isolation --no-deps -e .
    mark_done memkv "$(native_key)"
}

setup_peers() {
    local packages=()
    have redis-server || packages+=(redis-server)
    have fio || packages+=(fio)
    have iperf3 || packages+=(iperf3)
    install_packages "${packages[@]}"
    is_done peers "$(sum_of "$PEERS")" && return
    pip_install -r "$PEERS"
    mark_done peers "$(sum_of "$PEERS")"
}

case ${1:-} in
    '') setup_environment && setup_memkv ;;
    missing) missing_packages "$(find_python)" ;;
    peers) setup_environment && setup_memkv && setup_peers ;;
    *) die "unknown argument '$1' (known: missing, peers)" ;;
esac
