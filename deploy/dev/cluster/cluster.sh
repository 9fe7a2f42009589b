#!/usr/bin/env bash
# A real Kubernetes on this machine: N kubelets, each with its own network and mount namespace,
# containerd, kube-proxy and cgroup; CoreDNS as a pod; images of this tree imported by image.sh.
#
#   cluster.sh up [N]    starts N nodes (2 if not said), prints `export KUBECONFIG=...`
#   cluster.sh down      ends it; leaves no process, namespace, mount, route or cgroup
#
# Needs root on Linux and the binaries of build.sh. Everything is open to this machine: for tests.
# Exit status 77: cannot run here (the last line says why).
set -euo pipefail
# shellcheck source=deploy/dev/cluster/settings.sh
. "$(dirname "$0")/settings.sh"

check_machine() {
    [ "$(uname -s)" = Linux ] || cannot "a local cluster needs Linux"
    [ "$(id -u)" = 0 ] || cannot "a local cluster needs root (network and mount namespaces)"
    [ -z "$("$HERE/build.sh" missing | grep -v kwok)" ] ||
        cannot "Kubernetes is not built: run deploy/dev/cluster/build.sh"
    install_packages containerd=containerd runc=runc iptables=iptables ip=iproute2 \
        /usr/lib/cni/ptp=containernetworking-plugins nsenter=util-linux openssl=openssl \
        buildah=buildah
    unshare --mount --net true 2>/dev/null || cannot "namespaces are not allowed here"
    modprobe -q overlay 2>/dev/null || true
    grep -qw overlay /proc/filesystems || cannot "this kernel has no overlay file system"
}

start_control_plane() {
    mkdir -p "$RUN/certs"
    openssl genrsa -traditional -out "$RUN/certs/accounts.key" 2048 2>/dev/null
    openssl rsa -in "$RUN/certs/accounts.key" -pubout -out "$RUN/certs/accounts.pub" 2>/dev/null
    local token
    token=$(openssl rand -hex 16)
    echo "$token,admin,1,\"system:masters\"" >"$RUN/tokens.csv"
    # The journal of a cluster that is thrown away needs no fsync.
    start etcd "$BIN/etcd" --data-dir "$DATA/etcd" --unsafe-no-fsync \
        --listen-client-urls http://127.0.0.1:23790 --advertise-client-urls http://127.0.0.1:23790 \
        --listen-peer-urls http://127.0.0.1:23800
    start kube-apiserver "$BIN/kube-apiserver" --etcd-servers http://127.0.0.1:23790 \
        --bind-address "$NETWORK.1" --advertise-address "$NETWORK.1" --secure-port 6443 \
        --cert-dir "$RUN/certs" --token-auth-file "$RUN/tokens.csv" --authorization-mode Node,RBAC \
        --service-account-issuer https://kubernetes.default.svc.cluster.local \
        --service-account-key-file "$RUN/certs/accounts.pub" \
        --service-account-signing-key-file "$RUN/certs/accounts.key" \
        --service-cluster-ip-range "$SERVICE_RANGE" --allow-privileged=true \
        --kubelet-preferred-address-types InternalIP
    wait_for 120 "the API server's certificate" test -s "$RUN/certs/apiserver.crt"
    cat >"$KUBECONFIG" <<YAML
apiVersion: v1
kind: Config
clusters:
- name: memkv
  cluster:
    server: $API
    certificate-authority-data: $(base64 -w 0 "$RUN/certs/apiserver.crt")
users: [{name: admin, user: {token: $token}}]
contexts: [{name: memkv, context: {cluster: memkv, user: admin}}]
current-context: memkv
YAML
    wait_for 120 "the API server" "$BIN/kubectl" get --raw /readyz
    start kube-controller-manager "$BIN/kube-controller-manager" --kubeconfig "$KUBECONFIG" \
        --service-account-private-key-file "$RUN/certs/accounts.key" \
        --root-ca-file "$RUN/certs/apiserver.crt" --use-service-account-credentials \
        --leader-elect=false --node-monitor-grace-period 20s
    start kube-scheduler "$BIN/kube-scheduler" --kubeconfig "$KUBECONFIG" --leader-elect=false
}

up() {
    local count=${1:-2} number
    [[ $count =~ ^[1-9]$ ]] || die "the number of nodes is 1 to 9, not '$count'"
    [ ! -e "$RUN" ] || die "a cluster runs already: export KUBECONFIG=$KUBECONFIG, or end it
    with deploy/dev/cluster/cluster.sh down"
    check_machine
    mkdir -p "$RUN" "$DATA"
    trap 'say "did not start: logs are in $RUN; deploy/dev/cluster/cluster.sh down cleans up"' ERR
    ip link add "$BRIDGE" type bridge
    ip address add "$NETWORK.1/24" dev "$BRIDGE"
    ip link set "$BRIDGE" up
    sysctl -qw net.ipv4.ip_forward=1
    "$HERE/image.sh" small
    start_control_plane
    for number in $(seq "$count"); do "$HERE/node.sh" add "$number"; done
    "$BIN/kubectl" apply -f "$HERE/coredns.yaml" >/dev/null
    for number in $(seq "$count"); do
        wait_for 120 "node$number" "$BIN/kubectl" get node "node$number"
    done
    "$BIN/kubectl" wait --for=condition=Ready node --all --timeout=120s >&2
    "$BIN/kubectl" -n kube-system rollout status deployment/coredns --timeout=120s >&2
    echo "export KUBECONFIG=$KUBECONFIG PATH=$BIN:\$PATH"
}

stop_pid_file() {
    local pid
    pid=$(cat "$1" 2>/dev/null) || return 0
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 50); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -9 "$pid" 2>/dev/null || true
    rm -f "$1"
}

down() {
    [ "$(id -u)" = 0 ] || cannot "a local cluster needs root"
    local folder name
    for folder in $(nodes_running); do "$HERE/node.sh" remove "${folder##*node}"; done
    for name in kube-scheduler kube-controller-manager kube-apiserver etcd; do
        stop_pid_file "$RUN/$name.pid"
    done
    ip link delete "$BRIDGE" 2>/dev/null || true
    # A process that is stopped or frozen ends when it goes on; its files stay for the next `down`.
    ! pgrep -f "^[^ ]+ .*$RUN/" >/dev/null || die "these did not end: $(pgrep -f "^[^ ]+ .*$RUN/" |
        xargs)"
    rm -rf "$RUN" "$DATA"
}

case ${1:-} in
    up) shift; up "$@" ;;
    down) down ;;
    *) die "say up [N] or down" ;;
esac
