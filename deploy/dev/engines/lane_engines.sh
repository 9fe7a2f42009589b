#!/usr/bin/env bash
# The lane of the tests that drive inference engines: tests/engines/ENGINE by an interpreter that has
# ENGINE and this tree's MemKV. MEMKV_ENGINES chooses; PYTEST_ARGS go to pytest. MEMKV_VLLM_PYTHON
# names an interpreter with vLLM for GPUs and MemKV: then tests that need a GPU run too.
# Exit status 77: no engine can be had here; the last line of output is the reason.
set -uo pipefail
cd "$(dirname "$0")/../../.."

# Hashes of tokens must agree between processes, and two cores are all that tests may count on.
export PYTHONHASHSEED=0 OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} HF_HUB_OFFLINE=1
[ -n "${MEMKV_VLLM_PYTHON:-}" ] || export CUDA_VISIBLE_DEVICES=

setup_of() {
    case $1 in
        vllm) if [ -n "${MEMKV_VLLM_PYTHON:-}" ]; then echo "$MEMKV_VLLM_PYTHON"; else deploy/dev/vllm/setup.sh; fi ;;
        *) deploy/dev/engines/setup.sh "$1" ;;
    esac
}

status=77
reason='no engine was chosen'
for engine in ${MEMKV_ENGINES:-vllm lmcache sglang}; do
    compgen -G "tests/engines/$engine/test_*.py" >/dev/null || continue
    found=$(setup_of "$engine")
    case $? in
        0) ;;
        77) reason="$engine: $(tail -n 1 <<<"$found")"; printf 'skipped %s\n' "$reason"; continue ;;
        *) printf '%s\nthe environment of %s could not be made\n' "$found" "$engine"; exit 1 ;;
    esac
    python=$(tail -n 1 <<<"$found")
    printf -- '-- %s by %s\n' "$engine" "$python"
    # shellcheck disable=SC2086
    if "$python" -m pytest -p no:cacheprovider -W ignore::DeprecationWarning \
        "tests/engines/$engine" ${PYTEST_ARGS:-}; then
        [ "$status" = 1 ] || status=0
    else
        status=1
    fi
done
[ "$status" != 77 ] || printf '%s\n' "$reason"
exit "$status"
