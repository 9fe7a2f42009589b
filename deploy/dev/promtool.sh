#!/usr/bin/env bash
# promtool.sh: prints the path of a promtool: the one on PATH, or the one of Debian's package
# `prometheus`, which is fetched once into MEMKV_CACHE/promtool/VERSION and not installed.
# Exit status 77: none can be had (the last line says why).
set -euo pipefail
CACHE=${MEMKV_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/memkv}/promtool

cannot() { printf '%s\n' "$*"; exit 77; }

if command -v promtool; then exit 0; fi
for known in "$CACHE"/*/promtool; do
    if [ -x "$known" ]; then
        printf '%s\n' "$known"
        exit 0
    fi
done
for tool in apt-get dpkg-deb; do
    command -v "$tool" >/dev/null || cannot "no promtool on PATH, and no $tool to fetch Debian's with"
done
mkdir -p "$CACHE"
exec 9>"$CACHE/.lock"
flock 9
work=$(mktemp -d "$CACHE/.part.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
fetch() { apt-get download -q prometheus >log 2>&1; }
# Lists of packages may be old, or not there yet; only root may renew them.
fetch || { [ "$(id -u)" = 0 ] && apt-get update -q >log 2>&1 && fetch; } ||
    cannot "no promtool on PATH, and apt-get download prometheus failed: $(tail -n 1 log)"
package=$(echo prometheus_*.deb)
dpkg-deb -x "$package" unpacked
version=$(dpkg-deb -f "$package" Version)
mkdir -p "$CACHE/$version"
mv unpacked/usr/bin/promtool "$CACHE/$version/promtool"
printf '%s\n' "$CACHE/$version/promtool"
