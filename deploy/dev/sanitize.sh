#!/usr/bin/env bash
# Runs the tests of the native code under AddressSanitizer + UBSan and under ThreadSanitizer:
# the C programs of tests/native by ctest, and tests/unit/native with a sanitized _hotpath.
# Builds lie in $MEMKV_CACHE/native/<hash of the native sources and tools>, so they are made once.
set -uo pipefail
cd "$(dirname "$0")/../.."
ROOT=$PWD
BIN=$ROOT/.venv/bin
export PATH=$BIN:$PATH
CACHE=${MEMKV_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/memkv}
LANE=deploy/dev/lane.sh
PYTHON_TESTS=tests/unit/native
BUILD_DAYS_KEPT=3 # builds of earlier sources, some 20 MB each, go when unused for so long

not_built() { printf '%s\n' "$2"; exit "$1"; }
skip() { printf '%s\n' "$*"; exit 77; }

build_key() {
    {
        find dataplane/native tests/native -type f | LC_ALL=C sort | xargs sha256sum
        "$BIN/python" -c 'import sys; print(sys.executable, sys.version)'
        cc --version
        cmake --version
        printf '%s\n' "$ROOT" # debug information names the sources by their path
    } | sha256sum | cut -c1-20
}

prune_builds() {
    find "$1" -mindepth 1 -maxdepth 1 -type d -mtime "+$BUILD_DAYS_KEPT" -exec rm -rf {} +
}

# build NAME SANITIZERS
build() {
    local folder=$CACHE/native/$(build_key)/$1
    printf 'int main(void) { return 0; }\n' |
        cc -fsanitize="$2" -x c -o /dev/null - 2>/dev/null ||
        skip "the compiler has no runtime for -fsanitize=$2"
    mkdir -p "$folder"
    touch "${folder%/*}"
    prune_builds "$CACHE/native"
    (
        flock 9 # two runs of one user never build in one folder
        [ -e "$folder/done" ] && exit 0
        cmake -G Ninja -S dataplane/native -B "$folder" -DCMAKE_BUILD_TYPE=Debug \
            -DMEMKV_NATIVE_TESTS=ON -DMEMKV_SANITIZE="$2" \
            -DPython_EXECUTABLE="$BIN/python" >"$folder/build.log" 2>&1 &&
            cmake --build "$folder" --target memkv_native_tests _hotpath \
                >>"$folder/build.log" 2>&1 || { cat "$folder/build.log"; exit 1; }
        touch "$folder/done"
    ) 9>"$folder/lock" || return 1
    printf '%s\n' "$folder"
}

# Shadow memory of ThreadSanitizer does not fit every layout of a randomized address space.
unrandomized() {
    if setarch -R true 2>/dev/null; then setarch -R "$@"; else "$@"; fi
}

# The interpreter frees little of what it allocates at exit, lanes and their threads included, so
# leaks are looked for in C only.
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1
C_ASAN=detect_leaks=1:abort_on_error=0
PYTHON_ASAN=detect_leaks=0:abort_on_error=0

run_c() {
    local folder
    folder=$(build "$1" "$2") || not_built $? "$folder"
    ASAN_OPTIONS=$C_ASAN unrandomized ctest --test-dir "$folder" --output-on-failure \
        --no-tests=error --timeout 600
}

# run_python NAME SANITIZERS LIBRARY...: the runtime must be loaded before the interpreter's own.
run_python() {
    local name=$1 sanitizers=$2 folder preload='' library module
    shift 2
    compgen -G "$PYTHON_TESTS/test_*.py" >/dev/null || skip "no tests in $PYTHON_TESTS"
    folder=$(build "$name" "$sanitizers") || not_built $? "$folder"
    for library in "$@"; do preload="$preload $(cc -print-file-name="$library")"; done
    module=$(compgen -G "$folder/_hotpath*.so") || { echo "no _hotpath in $folder"; exit 1; }
    LD_PRELOAD=$preload ASAN_OPTIONS=$PYTHON_ASAN unrandomized "$BIN/python" -c '' 2>/dev/null ||
        skip "this interpreter does not start with$preload preloaded"
    TSAN_OPTIONS=$TSAN_OPTIONS:report_thread_leaks=0 \
        MEMKV_HOTPATH=$module LD_PRELOAD=$preload ASAN_OPTIONS=$PYTHON_ASAN PYTHONMALLOC=malloc \
        unrandomized "$BIN/python" -m pytest -q --capture=sys -p no:cacheprovider \
        -o timeout=900 "$PYTHON_TESTS" # capturing file descriptors would swallow the reports
}

case ${1:-} in
    c-asan) run_c asan address,undefined ;;
    c-tsan) run_c tsan thread ;;
    python-asan) run_python asan address,undefined libasan.so libubsan.so ;;
    python-tsan) run_python tsan thread libtsan.so ;;
    '')
        failed=0
        for lane in c-asan c-tsan python-asan python-tsan; do
            $LANE "sanitize-$lane" "$0" "$lane" || failed=1
        done
        exit $failed
        ;;
    *) echo "unknown lane '$1'" >&2; exit 2 ;;
esac
