#!/usr/bin/env bash
# lane.sh NAME COMMAND...: runs one lane of checks and prints its name, result and time.
# Exit status 77 of the command means "cannot run here"; its last line of output is the reason.
# A line "remark: ..." of a command that passed is shown where the others have their reason.
# MEMKV_LANES names a file that collects, separated by tabs: name, result, seconds, tests passed,
# failed and skipped (a lane that does not count its tests is one test), reason. See .ci/run.
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
    0) result=passed reason=$(sed -n 's/^remark: //p' "$output" | tail -n 1) ;;
    77) result=skipped reason=$(tail -n 1 "$output") ;;
    *) result=failed reason="exit status $status" ;;
esac

# The closing line of pytest or ctest, if there is one.
summary=$(grep -E '^=* ?[0-9]+ .* in [0-9.]+s|tests passed.* out of ' "$output" | tail -n 1)
count() { grep -oE "[0-9]+ $1" <<<"$summary" | awk '{ sum += $1 } END { print sum + 0 }'; }
passed=$(count passed) failed=$(count '(failed|errors?)') skipped=$(count skipped)
if [[ $summary =~ ([0-9]+)\ tests\ failed\ out\ of\ ([0-9]+) ]]; then
    failed=${BASH_REMATCH[1]} passed=$((BASH_REMATCH[2] - BASH_REMATCH[1]))
elif [[ $summary =~ tests\ passed.*\ out\ of\ ([0-9]+) ]]; then
    failed=0 passed=${BASH_REMATCH[1]}
fi
case $result in
    passed) ((passed + skipped > 0)) || passed=1 ;;
    failed) ((failed > 0)) || failed=1 ;;
    skipped) passed=0 failed=0 skipped=1 ;;
esac

printf -- '-- %s: %s in %s s%s\n' "$name" "$result" "$seconds" "${reason:+ ($reason)}"
if [ -n "${MEMKV_LANES:-}" ]; then
    printf '%s\t%s\t%s\t%d\t%d\t%d\t%s\n' "$name" "$result" "$seconds" \
        "$passed" "$failed" "$skipped" "$reason" >>"$MEMKV_LANES"
fi
[ "$result" != failed ]
