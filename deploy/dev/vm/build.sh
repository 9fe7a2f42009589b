#!/usr/bin/env bash
# Gets what the virtual machine of tests/vm needs: QEMU and tools from the distribution, and a
# kernel with soft-RoCE and NVMe, unpacked, never installed. A second call takes no time.
#
#   build.sh             gets what is missing
#   build.sh where       prints the folder of the kernel, gets nothing
#   build.sh initramfs   prints the file that goes with it, made from what is there
#   build.sh missing     prints what is not there yet, and why it cannot be had, if so
#
# Kernel and modules land in MEMKV_CACHE/vm/VERSION; the newest complete one is used. Beside them is
# an initramfs for each version of these scripts that was used.
# Exit status 77: cannot be had here (the last line says why).
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${MEMKV_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/memkv}/vm
# With what they need loaded first. crc32_generic: soft-RoCE wants it, and no module says so.
MODULES_FEW="virtio_pci 9pnet_virtio 9p virtio_rng nvme veth"
MODULES_ALL="$MODULES_FEW crc32_generic crc32c_generic rdma_rxe ib_uverbs rdma_ucm dummy bridge
    sch_netem dm-mod dm-flakey dm-delay overlay loop"
# Command or file, package that has it.
TOOLS="
qemu-system-x86_64 qemu-system-x86
/bin/busybox       busybox-static
cpio               cpio
depmod             kmod
xz                 xz-utils
zstd               zstd
ip                 iproute2
rdma               iproute2
dmsetup            dmsetup
fio                fio
nvme               nvme-cli
ibv_devinfo        ibverbs-utils
ib_write_bw        perftest
/usr/lib/python3/dist-packages/pyverbs python3-pyverbs
"

# iproute2 and kmod live where a plain user's PATH may not look.
PATH=$PATH:/usr/sbin:/sbin

say() { printf 'vm: %s\n' "$*" >&2; }
cannot() { printf '%s\n' "$*"; exit 77; }
have() { [ -e "$1" ] || command -v "$1" >/dev/null 2>&1; }
# The accelerator is found last. A change of the lists makes a folder of modules of its own.
MODULES=modules-$(printf '%s %s' "$MODULES_FEW" "$MODULES_ALL" | sha256sum | cut -c1-12)
is_complete() { [ -s "$1/accelerator" ] && [ -d "$1/$MODULES" ]; }

folder() {
    local candidate
    for candidate in $(printf '%s\n' "$CACHE"/*/ | sort -rV); do
        if is_complete "$candidate"; then
            printf '%s\n' "${candidate%/}"
            return
        fi
    done
    return 1
}

missing_packages() {
    local tool package
    while read -r tool package; do
        [ -z "$tool" ] || have "$tool" || printf '%s\n' "$package"
    done <<<"$TOOLS" | sort -u
}

# The reason why nothing can be got here; empty: it can, or nothing is missing.
obstacle() {
    local packages=$1
    if [ "$(uname -m)" != x86_64 ]; then
        echo "the virtual machine is made for x86_64, this is $(uname -m)"
    elif [ -n "$packages" ] && ! have apt-get; then
        echo "this machine lacks $packages and has no apt-get to install them"
    elif [ -n "$packages" ] && [ "$(id -u)" != 0 ]; then
        echo "this machine lacks $packages: sudo apt-get install -y $packages"
    elif ! folder >/dev/null && ! have apt-get; then
        echo "the kernel comes from Debian's linux-image-amd64, and there is no apt-get to get it"
    fi
}

missing() {
    local packages reason
    packages=$(missing_packages | xargs)
    [ -z "$packages" ] || printf '%s\n' $packages
    folder >/dev/null || echo "linux-image-amd64 (unpacked)"
    reason=$(obstacle "$packages")
    [ -z "$reason" ] || printf 'cannot be had: %s\n' "$reason"
}

install_packages() {
    [ $# -gt 0 ] || return 0
    say "apt-get install $*"
    local install=(apt-get install -y -q --no-install-recommends "$@")
    export DEBIAN_FRONTEND=noninteractive
    "${install[@]}" >/dev/null 2>&1 || { apt-get update -q >/dev/null && "${install[@]}" >&2; } ||
        cannot "apt-get could not install $*"
}

# The package that linux-image-amd64 stands for today.
kernel_package() {
    apt-cache depends linux-image-amd64 2>/dev/null |
        sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1
}

download_kernel() {
    local package
    package=$(kernel_package)
    if [ -z "$package" ]; then
        apt-get update -q >/dev/null 2>&1 || true
        package=$(kernel_package)
    fi
    [ -n "$package" ] || cannot "apt knows no linux-image-amd64 (is this Debian?)"
    say "getting $package (70 MB)"
    (cd "$WORK" && { apt-get download -q "$package" || { apt-get update -q &&
        apt-get download -q "$package"; }; } >/dev/null 2>&1) ||
        cannot "apt-get could not download $package"
    dpkg -x "$WORK"/linux-image-*.deb "$WORK/image"
    # Debian 13 keeps modules below /usr.
    [ -e "$WORK/image/lib" ] || ln -s usr/lib "$WORK/image/lib"
}

# An unpacked kernel starts 3 s sooner than one that an emulated processor must unpack.
unpack_kernel() {
    local packed=$1 unpacked=$2 magic tool at
    while read -r magic tool; do
        for at in $(LC_ALL=C grep -aobP "$magic" "$packed" | cut -d: -f1); do
            # What follows the compressed kernel makes the tool fail after all is written.
            tail -c "+$((at + 1))" "$packed" | $tool >"$unpacked" 2>/dev/null || true
            [ "$(head -c 4 "$unpacked" | tail -c 3)" != ELF ] || return 0
        done
    done <<<'\xFD7zXZ\x00 xz -dc
\x28\xB5\x2F\xFD zstd -dc
\x1F\x8B\x08 gzip -dc'
    cp "$packed" "$unpacked"
}

# load_order IMAGE VERSION MODULE...: files of these modules and of those they need, in order.
load_order() {
    local image=$1 version=$2 module
    shift 2
    for module; do
        modprobe -d "$image" -S "$version" --show-depends "$module" 2>/dev/null |
            awk '/^insmod/ { print $2 }'
    done | awk '!seen[$0]++'
}

# Copies the modules that are loaded, and their order, to where they stay.
keep_modules() {
    local image=$1 version=$2 kept=$3 module file plain='s|.*/||; s|\.ko\..*|.ko|'
    mkdir -p "$kept"
    [ -e "$image/lib/modules/$version/modules.dep" ] || depmod -b "$image" "$version"
    # shellcheck disable=SC2086  # several words
    load_order "$image" "$version" $MODULES_ALL >"$WORK/all"
    # shellcheck disable=SC2086
    load_order "$image" "$version" $MODULES_FEW | sed "$plain" >"$kept/few"
    sed "$plain" "$WORK/all" >"$kept/all"
    while read -r file; do
        case $file in
            *.xz) xz -dc "$file" >"$kept/$(basename "${file%.xz}")" ;;
            *.zst) zstd -qdc "$file" >"$kept/$(basename "${file%.zst}")" ;;
            *) cp "$file" "$kept/" ;;
        esac
    done <"$WORK/all"
    # What the kernel has built in is not listed; these Debian builds as modules.
    for module in rdma_rxe nvme 9p veth dm-flakey; do
        [ -e "$kept/$module.ko" ] || cannot "kernel $version has no module $module"
    done
}

initramfs() {
    local folder made root
    folder=$(folder) || cannot "no kernel yet: deploy/dev/vm/build.sh"
    made=$folder/initramfs-$(cat "$HERE/init" - <<<"$MODULES" | sha256sum | cut -c1-12)
    if [ ! -e "$made" ]; then
        root=$(mktemp -d -p "$folder")
        mkdir "$root"/{bin,proc,sys,dev,host,tree}
        cp /bin/busybox "$root/bin/busybox"
        install -m 755 "$HERE/init" "$root/init"
        cp -r "$folder/$MODULES" "$root/modules"
        (cd "$root" && find . | cpio -o -H newc 2>/dev/null) >"$root.cpio"
        rm -rf "$root"
        mv "$root.cpio" "$made"
    fi
    printf '%s\n' "$made"
}

build() {
    local packages reason version started=$SECONDS
    packages=$(missing_packages | xargs)
    reason=$(obstacle "$packages")
    [ -z "$reason" ] || cannot "$reason"
    # shellcheck disable=SC2086  # several words
    install_packages $packages
    ! folder >/dev/null || return 0
    mkdir -p "$CACHE"
    exec 9>"$CACHE/.lock"
    flock 9
    ! folder >/dev/null || return 0
    WORK=$(mktemp -d -p "$CACHE")
    trap 'rm -rf "$WORK"' EXIT
    download_kernel
    version=$(basename "$WORK"/image/lib/modules/*)
    mkdir -p "$CACHE/$version"
    rm -rf "${CACHE:?}/$version/accelerator"
    keep_modules "$WORK/image" "$version" "$WORK/modules"
    unpack_kernel "$WORK/image/boot/vmlinuz-$version" "$WORK/vmlinux"
    mv "$WORK/vmlinux" "$CACHE/$version/vmlinux"
    rm -rf "${CACHE:?}/$version/$MODULES"
    mv "$WORK/modules" "$CACHE/$version/$MODULES"
    echo tcg >"$CACHE/$version/accelerator"
    "$HERE/accelerator.sh" >"$WORK/accelerator"
    mv "$WORK/accelerator" "$CACHE/$version/accelerator"
    say "kernel $version in $((SECONDS - started)) s"
}

case ${1:-} in
    '') build ;;
    where) folder || cannot "no kernel yet: deploy/dev/vm/build.sh" ;;
    initramfs) initramfs ;;
    missing) missing ;;
    *) say "unknown argument '$1' (known: where, initramfs, missing)"; exit 2 ;;
esac
