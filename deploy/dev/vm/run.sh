#!/usr/bin/env bash
# run.sh [--drive FILE[:SERIAL]]... [--memory MIB] [--hugepages COUNT] [--seconds MAX] [--modules few]
#        [--processors COUNT] JOB OUT
# Boots the virtual machine, runs the script JOB in it, and powers it off. See guest.sh for what JOB
# finds there. OUT, a folder, is the guest's /mnt/out and gets:
#
#   job.log      what JOB printed             console.log  what the kernel printed
#   qemu.pid     to end it, as a power cut    boot_s       seconds from power on to JOB's start
#   status       JOB's exit status
#
# Exit status: JOB's; 124 when MAX (default 600) was over; 125 when the machine ended without one.
# Each drive is an NVMe controller of its own; FILE is made (2 GiB, sparse) where there is none.
# --modules few: without soft-RoCE and device-mapper, to start sooner.
# Emulated, on two cores shared with other work: JOB starts 8 to 12 s after power on, 7 with few
# modules; Python and a node's server are imported in 8 s, client and gRPC in 15, pytest in 7.
# MEMKV_VM_ACCEL=kvm or tcg overrides what build.sh found to work.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TREE=$(cd "$HERE/../../.." && pwd)

memory=3072 hugepages=256 seconds=600 modules=all processors=2 drives=()
while [ $# -gt 2 ]; do
    case $1 in
        --drive) drives+=("$2") ;;
        --memory) memory=$2 ;;
        --hugepages) hugepages=$2 ;;
        --processors) processors=$2 ;;
        --modules) modules=$2 ;;
        --seconds) seconds=$2 ;;
        *) echo "vm: unknown argument '$1'" >&2; exit 2 ;;
    esac
    shift 2
done
[ $# = 2 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
job=$1 out=$2
folder=$("$HERE/build.sh" where)
initramfs=$("$HERE/build.sh" initramfs)

mkdir -p "$out"
rm -f "$out"/{job.log,console.log,status,boot_s,qemu.pid}
[ "$job" -ef "$out/job" ] || cp "$job" "$out/job"

arguments=()
for index in "${!drives[@]}"; do
    file=${drives[$index]%%:*}
    serial=memkv$index
    [[ ${drives[$index]} != *:* ]] || serial=${drives[$index]#*:}
    [ -e "$file" ] || truncate -s 2G "$file"
    # cache=none: what the guest reads was not kept in the host's memory by chance.
    options=if=none,id=drive$index,format=raw,cache=none,aio=threads,discard=unmap
    arguments+=(-drive "file=$file,$options"
        -device "nvme,serial=$serial,drive=drive$index")
done

# qemu64: with more of the processor emulated, soft-RoCE's checksums take twice as long.
accelerator=${MEMKV_VM_ACCEL:-$(cat "$folder/accelerator")}
case $accelerator in
    kvm) arguments+=(-accel kvm -cpu host) ;;
    *) arguments+=(-accel "tcg,thread=multi" -cpu qemu64) ;;
esac

kernel_arguments="console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off audit=0"
kernel_arguments+=" hugepages=$hugepages memkv.modules=$modules memkv.tree=$TREE"

# timeout waits in the foreground group; QEMU's own pidfile names QEMU, not timeout.
status=0
timeout --kill-after=5 "$seconds" qemu-system-x86_64 "${arguments[@]}" \
    -m "$memory" -smp "$processors" -nodefaults -display none -no-reboot -nic none \
    -serial "file:$out/console.log" -pidfile "$out/qemu.pid" -device virtio-rng-pci \
    -kernel "$folder/vmlinux" -initrd "$initramfs" \
    -append "$kernel_arguments" \
    -virtfs "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap" \
    -virtfs "local,path=$out,mount_tag=out,security_model=none,multidevs=remap" \
    </dev/null >"$out/qemu.log" 2>&1 || status=$?
[ "$status" != 124 ] || exit 124
[ -s "$out/status" ] || exit 125
exit "$(cat "$out/status")"
