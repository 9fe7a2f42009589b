#!/usr/bin/env bash
# Second stage of the virtual machine's start: the network, then the job. Runs in the guest as
# process 1, on the host's root (read-only; /tmp, /run and /mnt are its own, and empty).
#
# The job finds: OUT, a folder of the host that it may write; TREE, this repository, where it starts;
# PYTHONPATH with pyverbs alone of the distribution's packages; the drives in /dev/disk/by-id, as
# udev names them; huge pages of 2 MiB; and this network:
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
export PYTHONPATH=/run/pyverbs PYTHONDONTWRITEBYTECODE=1
export OUT=/mnt/out TREE
read -r line </proc/cmdline
TREE=${line##*memkv.tree=}
TREE=${TREE%% *}

power_off() {
    sync
    echo o >/proc/sysrq-trigger
    # No command can be loaded any more, and process 1 must not end.
    while :; do :; done
}

# In one run of ip and one of rdma.
make_network() {
    # 4200: room for soft-RoCE's headers and the largest MTU of InfiniBand, 4096.
    ip -batch - <<'END'
netns add node
netns add client
link add node0 mtu 4200 netns node type veth peer name client0 mtu 4200 netns client
link add rdma0 mtu 4200 type veth peer name rdma1 mtu 4200
addr add 10.98.0.1/24 dev rdma0
addr add 10.98.0.2/24 dev rdma1
link set rdma0 up
link set rdma1 up
END
    local namespace number=1
    for namespace in node client; do
        ip -n $namespace -batch - <<END
link set lo up
addr add 10.99.0.$number/24 dev ${namespace}0
link set ${namespace}0 up
END
        number=2
    done
    [ -e /sys/module/rdma_rxe ] || return 0
    # Both addresses are this namespace's own; a packet comes from one of them all the same.
    echo 1 >/proc/sys/net/ipv4/conf/rdma0/accept_local
    echo 1 >/proc/sys/net/ipv4/conf/rdma1/accept_local
    rdma -b - <<'END'
link add rxe0 type rxe netdev rdma0
link add rxe1 type rxe netdev rdma1
END
}

make_network
cd "$TREE" || power_off
read -r seconds _ </proc/uptime
echo "$seconds" >"$OUT/boot_s"
/bin/bash "$OUT/job" >"$OUT/job.log" 2>&1 </dev/null
echo $? >"$OUT/status"
power_off
