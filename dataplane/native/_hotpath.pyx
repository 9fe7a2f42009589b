# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=False
"""The one native module of MemKV: what measurably needs to run without the interpreter.

Each part is plain C in src/ (owner of every buffer and thread) and a thin wrapper here:

    sums.pxi     checksums, block ids, slots, the content pattern of tests and benchmarks
    index.pxi    the block index: fixed size, never rehashed
    ring.pxi     io_uring with registered files, and its pread/pwrite fallback
    lanes.pxi    byte streams, payload lanes and their threads
"""
include "sums.pxi"
include "index.pxi"
include "ring.pxi"
include "lanes.pxi"
