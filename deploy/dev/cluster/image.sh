#!/usr/bin/env bash
# Container images for the local cluster, built by buildah without a daemon or a registry.
#
#   image.sh build             builds this tree's image if its inputs changed; prints its name
#   image.sh small             makes the images of the pause container and of CoreDNS
#   image.sh import-small N    imports those into node N's containerd
#   image.sh all [NAME]        builds (or takes NAME), and imports into every node; prints its name
#   image.sh rename OLD NEW    gives an image of every node that runs a second name
#   image.sh check NAME        starts it without a network and compares what is in it with this tree
#
# BASE_IMAGE=... takes another base than a Debian 12 made by debootstrap. Archives are kept in
# MEMKV_CACHE/images by the sum of what they were made from. Root, as the cluster itself.
set -euo pipefail
# shellcheck source=deploy/dev/cluster/settings.sh
. "$(dirname "$0")/settings.sh"

IMAGES=$CACHE/images
SUITE=bookworm
INPUTS=(Dockerfile .dockerignore pyproject.toml README.md LICENSE dataplane operator proto
    deploy/dev/requirements-image-build.txt deploy/dev/requirements-image-run.txt)

# Its own storage: nothing of this machine's images is touched, and it is removed as one folder.
# BUILDAH_UNDER is a command that runs it.
run_buildah() {
    local driver
    driver=$(cat "$IMAGES/driver" 2>/dev/null || echo overlay)
    ${BUILDAH_UNDER:-} buildah --root "$IMAGES/storage" --runroot "$IMAGES/run" \
        --storage-driver "$driver" "$@"
}

# Overlay shares layers; vfs copies each, and works where overlay does not.
choose_driver() {
    [ ! -e "$IMAGES/driver" ] || return 0
    mkdir -p "$IMAGES"
    run_buildah images >/dev/null 2>&1 || { rm -rf "$IMAGES/storage"; echo vfs >"$IMAGES/driver"; }
    [ -e "$IMAGES/driver" ] || echo overlay >"$IMAGES/driver"
}

inputs() { (cd "$TREE" && git ls-files -z --cached --others --exclude-standard "${INPUTS[@]}"); }

image_key() {
    (cd "$TREE" && inputs | LC_ALL=C sort -zu | while IFS= read -r -d '' path; do
        [ ! -f "$path" ] || sha256sum "$path"
    done; echo "${BASE_IMAGE:-$SUITE}") | sha256sum | cut -c1-16
}


# buildah leaves the layers it went through mounted.
unmount_layers() {
    awk -v below="$IMAGES/storage/overlay" 'index($2, below) == 1 { print $2 }' /proc/mounts | tac |
        xargs -r umount 2>/dev/null || true
}

# push NAME FILE: writes an archive whole or not at all.
push() {
    run_buildah push -q "$1" "oci-archive:$2.part:$1"
    mv "$2.part" "$2"
}

small_image() {
    local name=$1 file=$2 folder=$3 entry=$4
    [ ! -e "$file" ] || return 0
    printf 'FROM scratch\nCOPY %s /%s\nENTRYPOINT ["/%s"]\n' "$entry" "$entry" "$entry" \
        >"$folder/Dockerfile"
    run_buildah bud -q --isolation chroot -t "$name" "$folder" >/dev/null
    push "$name" "$file"
}

small() {
    local work
    choose_driver
    work=$(mktemp -d)
    # shellcheck disable=SC2064  # the folder's name now, not at the end
    trap "rm -rf '$work'" EXIT
    if [ ! -e "$IMAGES/pause.tar" ]; then
        cc -O2 -static -o "$work/pause" "$HERE/pause.c"
    fi
    small_image "$PAUSE_IMAGE" "$IMAGES/pause.tar" "$work" pause
    cp -L "$BIN/coredns" "$work/coredns"
    small_image "$COREDNS_IMAGE" "$IMAGES/coredns.tar" "$work" coredns
}

# Prints the name of the base; makes one from Debian's archive where none was given.
base_image() {
    local name=memkv.local/debian:$SUITE root=$IMAGES/debian
    if [ -n "${BASE_IMAGE:-}" ]; then
        printf '%s\n' "$BASE_IMAGE"
        return
    fi
    if ! run_buildah inspect "$name" >/dev/null 2>&1; then
        install_packages debootstrap=debootstrap
        say "making a Debian $SUITE base (a minute)"
        rm -rf "$root"
        debootstrap --variant=minbase "$SUITE" "$root" >"$IMAGES/debootstrap.log" 2>&1 ||
            cannot "debootstrap could not fetch Debian $SUITE (see $IMAGES/debootstrap.log)"
        rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
        printf 'FROM scratch\nCOPY debian /\nCMD ["/bin/sh"]\n' >"$IMAGES/Dockerfile.base"
        run_buildah bud -q --isolation chroot -t "$name" -f "$IMAGES/Dockerfile.base" "$IMAGES" \
            >/dev/null
        rm -rf "$root"
    fi
    printf '%s\n' "$name"
}

# What pip knows on this machine, as one file that the build sees and the image does not.
pip_settings() {
    local line name value
    echo "[global]"
    python3 -m pip config list 2>/dev/null | while IFS= read -r line; do
        name=${line%%=*} value=${line#*=}
        name=${name#:env:.}
        name=${name#global.}
        value=${value#\'}
        value=${value%\'}
        case $name in
            index-url | extra-index-url | trusted-host | default-timeout | proxy)
                printf '%s = %s\n' "$name" "$value" ;;
            cert) echo 'cert = /run/secrets/ca.pem' ;;
        esac
    done | sort -u
}

certificates() {
    python3 -m pip config list 2>/dev/null |
        sed -n "s/^\(:env:\.\|global\.\)cert='\(.*\)'$/\2/p" | head -n 1
}

build() {
    local key name file base settings ca
    # Once: what is edited while it is built belongs to the next image.
    key=$(image_key)
    name=memkv.local/memkv:$key
    file=$IMAGES/memkv-$key.tar
    if [ ! -e "$file" ]; then
        install_packages buildah=buildah
        choose_driver
        exec 8>"$IMAGES/.lock"
        flock 8
        # Another call may have built it meanwhile.
        [ ! -e "$file" ] || { printf '%s\n' "$name"; return; }
        base=$(base_image)
        settings=$(mktemp)
        # shellcheck disable=SC2064  # the file's name now, not at the end
        trap "rm -f '$settings'; unmount_layers" EXIT
        pip_settings >"$settings"
        ca=$(certificates)
        say "building $name (two minutes or more)"
        run_buildah bud --isolation chroot --network host --layers --pull-never \
            --build-arg BASE_IMAGE="$base" \
            --build-arg REVISION="$(git -C "$TREE" rev-parse HEAD)" \
            --secret id=pip.conf,src="$settings" --secret id=ca.pem,src="${ca:-/dev/null}" \
            -t "$name" "$TREE" >"$IMAGES/build.log" 2>&1 ||
            { tail -n 30 "$IMAGES/build.log" >&2; die "the image was not built"; }
        # Earlier images of this tree: each is as large as this one.
        rm -f "$IMAGES"/memkv-*.tar
        run_buildah rm --all >/dev/null 2>&1 || true  # of builds that were ended half-way
        run_buildah images --format '{{.Name}}:{{.Tag}}' | grep '^memkv.local/memkv:' |
            grep -vxF "$name" | while IFS= read -r old; do run_buildah rmi "$old"; done \
            >>"$IMAGES/build.log" 2>&1 || true
        push "$name" "$file"
    fi
    printf '%s\n' "$name"
}

import_into() {
    local number=$1 file
    shift
    for file in "$@"; do
        ctr -a "$RUN/node$number/containerd.sock" -n k8s.io images import "$file" >/dev/null
    done
}

all() {
    local folder name
    name=${1:-$(build)}
    for folder in $(nodes_running); do
        ctr -a "$folder/containerd.sock" -n k8s.io images ls -q | grep -qx "$name" ||
            import_into "${folder##*node}" "$IMAGES/memkv-${name##*:}.tar"
    done
    printf '%s\n' "$name"
}

rename() {
    local folder
    for folder in $(nodes_running); do
        ctr -a "$folder/containerd.sock" -n k8s.io images tag --force "$1" "$2" >/dev/null
    done
    printf '%s\n' "$2"
}

# As a container runtime starts it: its own user, environment and commands, and no network at all.
run_in() {
    local container=$1
    shift
    BUILDAH_UNDER='unshare --net' run_buildah run --isolation chroot "$container" -- "$@"
}

check() {
    local name=$1 container label
    choose_driver
    container=$(run_buildah from --pull-never "$name")
    # shellcheck disable=SC2064  # the container's name now, not at the end
    trap "run_buildah rm '$container' >/dev/null; unmount_layers" EXIT
    run_in "$container" memkv --version >&2
    run_in "$container" memkv-operator run --help >/dev/null
    {
        cat "$HERE/check_image.py"
        printf 'main(r"""%s""")\n' "$(cat "$TREE/deploy/dev/requirements-image-run.txt")"
    } | run_in "$container" python3 -
    for label in title description licenses version revision source base.name; do
        [ -n "$(run_buildah inspect --type image \
            --format "{{index .OCIv1.Config.Labels \"org.opencontainers.image.$label\"}}" \
            "$name")" ] || die "the image has no label org.opencontainers.image.$label"
    done
    say "$name is as it should be"
}

case ${1:-} in
    build) build ;;
    check) check "$2" ;;
    small) small ;;
    import-small) import_into "$2" "$IMAGES/pause.tar" "$IMAGES/coredns.tar" ;;
    all) shift; all "$@" ;;
    rename) rename "$2" "$3" ;;
    *) die "say build, small, import-small, all, rename or check" ;;
esac
