#!/usr/bin/env bash
# Builds a real Kubernetes and its companions from Go modules, for the tests of tests/apiserver and
# tests/cluster. A cold build takes about 18 minutes of two cores; a second call does what is missing.
#
#   build.sh             builds what is missing
#   build.sh where       prints the folder of the binaries, builds nothing
#   build.sh missing     prints the binaries that are not there yet
#
# MEMKV_KUBERNETES=1.34.4 takes another version of Kubernetes, here and in the lanes.
# The binaries land in MEMKV_CACHE/kubernetes/VERSION, each moved into place when it is done, those
# the API server's tests need first. Exit status 77: cannot be built here (the last line says why).
set -euo pipefail

KUBERNETES=${MEMKV_KUBERNETES:-1.37.2}
GO_MIN=1.26
CACHE=${MEMKV_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/memkv}
BIN=$CACHE/kubernetes/$KUBERNETES

# binary, version, module, package; in the order of building.
TABLE="
etcd                    3.7.3       go.etcd.io/etcd/server/v3     .
kube-apiserver          $KUBERNETES k8s.io/kubernetes             ./cmd/kube-apiserver
kubectl                 $KUBERNETES k8s.io/kubernetes             ./cmd/kubectl
helm                    4.3.1       helm.sh/helm/v4               ./cmd/helm
kube-controller-manager $KUBERNETES k8s.io/kubernetes             ./cmd/kube-controller-manager
kube-scheduler          $KUBERNETES k8s.io/kubernetes             ./cmd/kube-scheduler
kubelet                 $KUBERNETES k8s.io/kubernetes             ./cmd/kubelet
kube-proxy              $KUBERNETES k8s.io/kubernetes             ./cmd/kube-proxy
coredns                 1.12.4      github.com/coredns/coredns    .
kwok                    0.8.0       sigs.k8s.io/kwok              ./cmd/kwok
"

say() { printf 'kubernetes: %s\n' "$*" >&2; }
cannot() { printf '%s\n' "$*"; exit 77; }

# A plain name (etcd) is a link to one version (etcd-3.7.3): a new version is built beside it.
is_built() { [ "$(readlink "$BIN/$1")" = "$1-$2" ] && [ -x "$BIN/$1-$2" ]; }

missing() {
    local name version rest
    while read -r name version rest; do
        [ -z "$name" ] || is_built "$name" "$version" || printf '%s\n' "$name"
    done <<<"$TABLE"
}

find_go() {
    local go
    for go in go /usr/local/go/bin/go; do
        go=$(command -v "$go") || continue
        if printf '%s\n' "$GO_MIN" "$("$go" env GOVERSION | sed 's/^go//')" | sort -CV; then
            printf '%s\n' "$go"
            return
        fi
    done
    return 1
}

# Kubernetes requires the modules of its own tree as v0.0.0 and replaces them by folders, which a
# build from outside cannot: each is replaced by the module published with the same release.
replacements() {
    local gomod
    gomod=$("$GO" mod download -json "k8s.io/kubernetes@v$KUBERNETES" |
        sed -n 's/.*"GoMod": "\(.*\)".*/\1/p')
    awk -v version="v0.${KUBERNETES#*.}" \
        '$1 ~ /^k8s\.io\// && $2 == "v0.0.0" { print "replace " $1 " => " $1 " " version }' "$gomod"
}

build_one() {
    local name=$1 version=$2 module=$3 package=$4 work=$WORK/$1 flags='-s -w' started=$SECONDS
    mkdir -p "$work"
    printf 'module build\n\ngo %s.0\n\nrequire %s v%s\n' "$GO_MIN" "$module" "$version" \
        >"$work/go.mod"
    if [ "$module" = k8s.io/kubernetes ]; then
        replacements >>"$work/go.mod"
        local stamp=k8s.io/component-base/version
        flags+=" -X $stamp.gitMajor=${KUBERNETES%%.*}"
        flags+=" -X $stamp.gitMinor=$(cut -d. -f2 <<<"$KUBERNETES")"
        flags+=" -X $stamp.gitVersion=v$KUBERNETES"
    fi
    package=${package#.}
    # Again after a failed download: what was compiled is kept.
    for _ in 1 2 3; do
        (cd "$work" && CGO_ENABLED=0 GOTOOLCHAIN=local "$GO" build -mod=mod -trimpath \
            -ldflags "$flags" -o "$work/out" "$module$package") && break
    done
    if [ ! -x "$work/out" ]; then
        (cd "$work" && "$GO" mod download "$module") >/dev/null 2>&1 ||
            cannot "no Go module $module v$version to be had (GOPROXY is $("$GO" env GOPROXY))"
        say "$name $version does not build"
        exit 1
    fi
    mv "$work/out" "$BIN/.$name-$version.part"
    mv "$BIN/.$name-$version.part" "$BIN/$name-$version"
    ln -sfn "$name-$version" "$work/link"
    mv -T "$work/link" "$BIN/$name"
    say "$name $version in $((SECONDS - started)) s"
}

build() {
    [ -n "$(missing)" ] || return 0
    GO=$(find_go) || cannot "no Go $GO_MIN or later (https://go.dev/dl) to build Kubernetes with"
    mkdir -p "$BIN"
    exec 9>"$BIN/.lock"
    flock 9
    WORK=$(mktemp -d)
    trap 'rm -rf "$WORK"' EXIT
    say "building $(missing | xargs) in $BIN (18 minutes when nothing is cached)"
    local name version module package
    while read -r name version module package; do
        [ -z "$name" ] || is_built "$name" "$version" ||
            build_one "$name" "$version" "$module" "$package" </dev/null
    done <<<"$TABLE"
}

case ${1:-} in
    '') build ;;
    where) printf '%s\n' "$BIN" ;;
    missing) missing ;;
    *) say "unknown argument '$1' (known: where, missing)"; exit 2 ;;
esac
