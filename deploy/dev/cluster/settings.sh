# Sourced by the scripts of this folder: where a local cluster keeps what, and what they share.
# One machine runs one such cluster: addresses, bridge and cgroups have fixed names.
# shellcheck shell=bash

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TREE=$(cd "$HERE/../../.." && pwd)
CACHE=${MEMKV_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/memkv}
BIN=$("$HERE/build.sh" where)
RUN=/run/memkv-cluster        # process ids, sockets, logs, kubeconfig; gone after `down`
DATA=$CACHE/cluster           # images, containers and volumes of the nodes; gone after `down`
export KUBECONFIG=$RUN/kubeconfig

BRIDGE=memkvbr0
CGROUP=memkv-node             # + number of the node, below each cgroup hierarchy
NETWORK=10.89.0               # .1 is this machine, .11 the first node
POD_NETWORK=10.244            # .1.0/24 is the first node's
SERVICE_RANGE=10.96.0.0/24
DNS_ADDRESS=10.96.0.10
API=https://$NETWORK.1:6443
PAUSE_IMAGE=memkv.local/pause:1
COREDNS_IMAGE=memkv.local/coredns:1

say() { printf 'cluster: %s\n' "$*" >&2; }
die() { printf 'cluster: error: %s\n' "$*" >&2; exit 1; }
# The last line of what exits with 77 is the reason of a skipped lane.
cannot() { printf '%s\n' "$*"; exit 77; }
have() { command -v "$1" >/dev/null 2>&1; }
nodes_running() { find "$RUN" -maxdepth 1 -type d -name 'node*' 2>/dev/null | sort -V; }

# install_packages COMMAND=PACKAGE...: those whose command is missing.
install_packages() {
    local pair packages=()
    for pair in "$@"; do
        [ -e "${pair%%=*}" ] || have "${pair%%=*}" || packages+=("${pair##*=}")
    done
    [ ${#packages[@]} -gt 0 ] || return 0
    have apt-get || cannot "this machine lacks ${packages[*]} and has no apt-get to install them"
    say "apt-get install ${packages[*]}"
    local install=(apt-get install -y -q --no-install-recommends "${packages[@]}")
    export DEBIAN_FRONTEND=noninteractive
    "${install[@]}" >/dev/null 2>&1 ||
        { apt-get update -q >/dev/null && "${install[@]}" >&2; } ||
        cannot "apt-get could not install ${packages[*]}"
}

# wait_for SECONDS WHAT COMMAND...: until the command succeeds.
wait_for() {
    local give_up=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $give_up ] || die "$what did not come; logs are in $RUN"
        sleep 0.3
    done
}

# start NAME COMMAND...: in a session of its own; NAME.pid and NAME.log in RUN.
start() {
    local name=$1
    shift
    setsid nohup "$@" >"$RUN/$name.log" 2>&1 </dev/null 9>&- &
    echo $! >"$RUN/$name.pid"
}
