#!/usr/bin/env bash
# One node of the local cluster.
#
#   node.sh add NUMBER      makes its namespaces and starts containerd, kube-proxy and kubelet
#   node.sh kill NUMBER     ends all of its processes at once and cuts its cable, as a power cut does
#   node.sh remove NUMBER   the same, and removes everything it had; its Node object stays
set -euo pipefail
# shellcheck source=deploy/dev/cluster/settings.sh
. "$(dirname "$0")/settings.sh"

COMMAND=$1
NUMBER=$2
NODE=node$NUMBER
STATE=$RUN/$NODE
STORE=$DATA/$NODE
SPACE=memkv-$NODE
ADDRESS=$NETWORK.$((10 + NUMBER))
PODS=$POD_NETWORK.$NUMBER.0/24
# What each node must have for itself, though the root file system is shared. The kubelet's folder of
# device plugins is hard-wired; pods with a hostPath find their blocks in the others, and agents what
# they were told: with the folder of another cluster they would refuse what this one says.
OWN_FOLDERS="/var/lib/kubelet /var/log/pods /var/log/containers /run/netns /var/lib/memkv
/var/lib/memkv-agent /run/memkv"

cgroup_roots() {
    if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
        echo /sys/fs/cgroup
    else
        local folder
        for folder in /sys/fs/cgroup/*/; do
            [ -e "$folder/cgroup.procs" ] && printf '%s\n' "${folder%/}"
        done
    fi
}

# A kubelet removes pods' cgroups it does not know: each gets a root of its own.
make_cgroups() {
    local root
    for root in $(cgroup_roots); do
        mkdir -p "$root/$CGROUP$NUMBER"
        # A new cpuset is empty, and nothing can run in it.
        if [ -e "$root/cpuset.cpus" ] && [ -e "$root/$CGROUP$NUMBER/cpuset.mems" ]; then
            cat "$root/cpuset.cpus" >"$root/$CGROUP$NUMBER/cpuset.cpus"
            cat "$root/cpuset.mems" >"$root/$CGROUP$NUMBER/cpuset.mems"
        fi
    done
}

make_network() {
    ip netns add "$SPACE"
    ip link add "memkv$NUMBER" type veth peer name eth0 netns "$SPACE"
    ip link set "memkv$NUMBER" master "$BRIDGE" up
    ip -n "$SPACE" address add "$ADDRESS/24" dev eth0
    ip -n "$SPACE" link set eth0 up
    ip -n "$SPACE" link set lo up
    ip -n "$SPACE" route add default via "$NETWORK.1"
    nsenter --net="/run/netns/$SPACE" sysctl -qw net.ipv4.ip_forward=1
    ip route replace "$PODS" via "$ADDRESS"
}

write_containerd() {
    # Without CAP_SYS_RESOURCE a container's OOM score cannot be lowered below its parent's.
    containerd config default | sed \
        -e "s#^root = .*#root = '$STORE/containerd'#" \
        -e "s#^state = .*#state = '$STATE/containerd'#" \
        -e "s#sandbox_image = .*#sandbox_image = '$PAUSE_IMAGE'#" \
        -e "s#/run/containerd/containerd.sock#$STATE/containerd.sock#" \
        -e "s#bin_dir = .*cni.*#bin_dir = '/usr/lib/cni'#" \
        -e "s#conf_dir = .*#conf_dir = '$STATE/cni'#" \
        -e "s/restrict_oom_score_adj = false/restrict_oom_score_adj = true/" \
        >"$STATE/containerd.toml"
    mkdir -p "$STATE/cni"
    cat >"$STATE/cni/10-ptp.conflist" <<JSON
{"cniVersion": "1.0.0", "name": "memkv", "plugins": [
  {"type": "ptp", "ipMasq": false, "ipam": {"type": "host-local", "dataDir": "$STATE/addresses",
    "ranges": [[{"subnet": "$PODS"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
}

write_kubelet() {
    cat >"$STATE/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
failSwapOn: false
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /$CGROUP$NUMBER
clusterDNS: [$DNS_ADDRESS]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix://$STATE/containerd.sock
evictionHard: {memory.available: "0%", nodefs.available: "0%", imagefs.available: "0%"}
imageGCHighThresholdPercent: 100
nodeStatusUpdateFrequency: 5s
YAML
}

# Runs inside the node's namespaces and becomes its kubelet.
inside() {
    local folder
    mount --make-rprivate /
    for folder in $OWN_FOLDERS; do mount --bind "$STORE$folder" "$folder"; done
    mount --make-rshared /
    start_inside containerd containerd -c "$STATE/containerd.toml"
    wait_for 60 "$NODE's containerd" ctr -a "$STATE/containerd.sock" version
    "$HERE/image.sh" import-small "$NUMBER"
    start_inside kube-proxy "$BIN/kube-proxy" --kubeconfig="$KUBECONFIG" --proxy-mode=iptables \
        --hostname-override="$NODE" --cluster-cidr="$POD_NETWORK.0.0/16" \
        --conntrack-max-per-core=0
    exec "$BIN/kubelet" --kubeconfig="$KUBECONFIG" --config="$STATE/kubelet.yaml" \
        --root-dir=/var/lib/kubelet --hostname-override="$NODE" --node-ip="$ADDRESS"
}

start_inside() {
    local name=$1
    shift
    "$@" >"$STATE/$name.log" 2>&1 </dev/null &
    echo $! >"$STATE/$name.pid"
}

add() {
    [ ! -e "$STATE" ] || die "$NODE runs already"
    local folder
    mkdir -p "$STATE"
    for folder in $OWN_FOLDERS; do mkdir -p "$folder" "$STORE$folder"; done
    make_network
    make_cgroups
    write_containerd
    write_kubelet
    setsid nohup nsenter --net="/run/netns/$SPACE" unshare --mount \
        "$HERE/node.sh" inside "$NUMBER" >"$STATE/kubelet.log" 2>&1 </dev/null &
    echo $! >"$STATE/kubelet.pid"
}

processes_in_cgroups() {
    local root
    for root in $(cgroup_roots); do
        find "$root/$CGROUP$NUMBER" -name cgroup.procs -exec cat {} + 2>/dev/null || true
    done | sort -un
}

kill_all() { [ -z "$*" ] || kill -9 "$@" 2>/dev/null || true; }

# The kubelet first, or it starts the containers again; the shims when nothing runs in them.
kill_node() {
    local name
    ip link set "memkv$NUMBER" down 2>/dev/null || true
    for name in kubelet containerd kube-proxy; do
        kill_all "$(cat "$STATE/$name.pid" 2>/dev/null)"
        rm -f "$STATE/$name.pid"
    done
    # shellcheck disable=SC2046  # one argument a process
    kill_all $(processes_in_cgroups)
    # shellcheck disable=SC2046  # likewise
    kill_all $(ps -eo pid,args |
        awk -v socket="$STATE/containerd.sock" '/containerd-shim/ && index($0, socket) {print $1}')
    wait_for 30 "the end of $NODE's containers" nothing_runs
}

nothing_runs() { [ -z "$(processes_in_cgroups)" ]; }

remove_node() {
    kill_node
    ip route delete "$PODS" 2>/dev/null || true
    # Sockets of the dead may hold the namespace, and with it the cable, for minutes.
    ip link delete "memkv$NUMBER" 2>/dev/null || true
    ip netns delete "$SPACE" 2>/dev/null || true
    local root
    for root in $(cgroup_roots); do
        find "$root/$CGROUP$NUMBER" -depth -type d -exec rmdir {} + 2>/dev/null || true
    done
    rm -rf "$STATE" "$STORE"
}

case $COMMAND in
    add) add ;;
    inside) inside ;;
    kill) kill_node ;;
    remove) remove_node ;;
    *) die "say add, kill or remove" ;;
esac
