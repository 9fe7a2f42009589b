#!/usr/bin/env bash
# lane.sh NAME COMMAND...: runs one lane of checks and prints its name, result and time.
# Exit status 77 of the command means "cannot run here"; its last line of output is the reason.
# MEMKV_LANES names a file that collects `name<TAB>result<TAB>seconds<TAB>reason` (see .ci/run).
set -uo pipefail
name=$1
shift
output=$(mktemp)
trap 'rm -f "$output"' EXIT
printf '== %s\n' "$name"
start=$(date +%s%N)
"$@" 2>&1 | tee "$output"
status=${PIPESTATUS[0]}
seconds=$(awk -v a="$start" -v b="$(date +%s%N)" 'BEGIN { printf "%.1f", (b - a) / 1e9 }')
reason=''
case $status in
    0) result=passed ;;
    77) result=skipped reason=$(tail -n 1 "$output") ;;
    *) result=failed reason="exit status $status" ;;
esac
printf -- '-- %s: %s in %s s%s\n' "$name" "$result" "$seconds" "${reason:+ ($reason)}"
if [ -n "${MEMKV_LANES:-}" ]; then
    printf '%s\t%s\t%s\t%s\n' "$name" "$result" "$seconds" "$reason" >>"$MEMKV_LANES"
fi
[ "$result" != failed ]
