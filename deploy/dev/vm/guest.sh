#!/usr/bin/env bash
# Second stage of the virtual machine's start: devices, two network namespaces, then the job.
# Runs in the guest as process 1, on the host's root (read-only; /tmp, /run and /mnt are its own).
#
# The job finds: OUT, a folder of the host that it may write; PYTHONPATH with pyverbs alone of the
# distribution's packages; the drives below /dev/disk/by-id; huge pages of 2 MiB; and this network:
#
#   namespace node     10.99.0.1  == veth ==  10.99.0.2  namespace client
#   rxe0 over rdma0    10.98.0.1  == veth ==  10.98.0.2  rxe1 over rdma1
#
# The soft-RoCE of Linux 6.1 routes and receives in the initial namespace only, whatever namespace
# its interface is in (a WRITE from another one ends with "local QP operation error"). So the two
# interfaces under it are in the initial one. Processes of the other two use the devices all the
# same: device files and GID tables are shared (`rdma system` says "netns shared").
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
export OUT=/mnt/out TREE
TREE=$(sed -n 's/.*\bmemkv.tree=\([^ ]*\).*/\1/p' /proc/cmdline)

power_off() {
    sync
    echo o >/proc/sysrq-trigger
    # No command can be loaded any more, and process 1 must not end.
    while :; do :; done
}

mount_kernel_folders() {
    mkdir -p /dev/shm /dev/pts /run/netns
    mount -t tmpfs shm /dev/shm
    mount -t devpts pts /dev/pts
    ln -sf /proc/self/fd /dev/fd
    mkdir -p /dev/hugepages
    mount -t hugetlbfs huge /dev/hugepages
}

# As udev names them; there is none here.
name_drives() {
    local block controller model serial
    mkdir -p /dev/disk/by-id
    for block in /sys/block/nvme*; do
        [ -e "$block" ] || continue
        controller=$block/device
        model=$(xargs <"$controller/model" | tr ' ' _)
        serial=$(xargs <"$controller/serial")
        ln -s "../../$(basename "$block")" "/dev/disk/by-id/nvme-${model}_$serial"
    done
}

make_namespaces() {
    ip link set lo up
    ip netns add node
    ip netns add client
    # 4200: room for soft-RoCE's headers and the largest MTU of InfiniBand, 4096.
    ip link add node0 mtu 4200 netns node type veth peer name client0 mtu 4200 netns client
    ip -n node addr add 10.99.0.1/24 dev node0
    ip -n client addr add 10.99.0.2/24 dev client0
    local namespace
    for namespace in node client; do
        ip -n $namespace link set lo up
        ip -n $namespace link set ${namespace}0 up
    done
}

make_rdma_devices() {
    ip link add rdma0 mtu 4200 type veth peer name rdma1 mtu 4200
    local index
    for index in 0 1; do
        # Both addresses are this namespace's own. A packet comes from one of them all the same:
        echo 1 >/proc/sys/net/ipv4/conf/rdma$index/accept_local
        ip addr add 10.98.0.$((index + 1))/24 dev rdma$index
        ip link set rdma$index up
        rdma link add rxe$index type rxe netdev rdma$index
    done
}

show_pyverbs() {
    mkdir -p /run/pyverbs
    ln -s /usr/lib/python3/dist-packages/pyverbs /run/pyverbs/pyverbs
    export PYTHONPATH=/run/pyverbs PYTHONDONTWRITEBYTECODE=1
}

mount_kernel_folders
name_drives
make_namespaces
make_rdma_devices
show_pyverbs
cd "$TREE" || power_off
read -r seconds _ </proc/uptime
echo "$seconds" >"$OUT/boot_s"
/bin/bash "$OUT/job" >"$OUT/job.log" 2>&1 </dev/null
echo $? >"$OUT/status"
power_off
