#!/usr/bin/env bash
# accelerator.sh: prints kvm where a guest with build.sh's kernel starts under it, else tcg.
# That /dev/kvm opens says little: on some machines inside a virtual machine no guest gets through
# its firmware. So one is started, which ends at once.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
kernel=$("$HERE/build.sh" where)/vmlinux
initramfs=$("$HERE/build.sh" initramfs)
if [ -w /dev/kvm ] && timeout --kill-after=1 10 qemu-system-x86_64 -accel kvm -cpu host -m 512 \
    -kernel "$kernel" -initrd "$initramfs" -nodefaults -display none -no-reboot \
    -append "console=ttyS0 quiet panic=-1 memkv.probe" -serial stdio </dev/null 2>&1 |
    grep -q '^memkv: started'; then
    echo kvm
else
    echo tcg
fi
