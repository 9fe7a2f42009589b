# ring: IoRing over src/ring.h. C owns slots and iovec copies; this class owns the Python buffers.

import errno
import os

from libc.stdlib cimport free, malloc

from cpython.buffer cimport PyBuffer_IsContiguous
from cpython.memoryview cimport PyMemoryView_FromObject, PyMemoryView_GET_BUFFER

cdef extern from "sys/uio.h" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "ring.h" nogil:
    struct mkv_ring
    struct mkv_ring_result:
        uint32_t slot
        int32_t result
    mkv_ring *mkv_ring_open(int fd, unsigned depth, int use_io_uring)
    void mkv_ring_close(mkv_ring *ring)
    int mkv_ring_is_io_uring(const mkv_ring *ring)
    const char *mkv_ring_fallback_reason(const mkv_ring *ring)
    unsigned mkv_ring_in_flight(const mkv_ring *ring)
    int mkv_ring_register(mkv_ring *ring, void *base, size_t length)
    int mkv_ring_guard(mkv_ring *ring, int fd)
    int mkv_ring_read(mkv_ring *ring, uint64_t offset, const iovec *parts, unsigned count)
    int mkv_ring_write(mkv_ring *ring, uint64_t offset, const iovec *parts, unsigned count)
    int mkv_ring_flush(mkv_ring *ring)
    int mkv_ring_discard(mkv_ring *ring, uint64_t offset, uint64_t length)
    int mkv_ring_wait(mkv_ring *ring, mkv_ring_result *results, unsigned capacity,
                      unsigned min_complete, int timeout_ms)

cdef enum:
    PARTS_MAX = 1024  # IOV_MAX


cdef object _view(object source, bint writable, iovec *part):
    """Return a memoryview that keeps `source` exported, and its bytes in `part`."""
    cdef object view = PyMemoryView_FromObject(source)
    cdef Py_buffer *buffer = PyMemoryView_GET_BUFFER(view)
    if not PyBuffer_IsContiguous(buffer, b"C"):
        raise ValueError("the buffer is not contiguous; pass one that is")
    if writable and buffer.readonly:
        raise ValueError("the buffer is read-only; bytes can only arrive in a writable one")
    part.iov_base = buffer.buf
    part.iov_len = <size_t>buffer.len
    return view


cdef class IoRing:
    cdef mkv_ring *_ring
    cdef mkv_ring_result *_results
    cdef unsigned _depth
    cdef list _held     # per slot: (token, views) until the result is taken
    cdef list _arenas   # registered memory stays exported until close
    cdef bint _waiting  # a thread is in `wait` without the GIL

    def __cinit__(self, int fd, int depth, *, bint use_io_uring=True):
        if not 1 <= depth <= 4096:
            raise ValueError(f"depth {depth} is not in 1..4096")
        self._depth = depth
        self._held = [None] * depth
        self._arenas = []
        self._results = <mkv_ring_result *>malloc(depth * sizeof(mkv_ring_result))
        self._ring = mkv_ring_open(fd, depth, use_io_uring)
        if self._results == NULL or self._ring == NULL:
            raise MemoryError("no memory for the I/O queue")

    def __dealloc__(self):
        if self._ring != NULL:
            with nogil:
                mkv_ring_close(self._ring)
        free(self._results)

    cdef int _check(self) except -1:
        if self._ring == NULL:
            raise ValueError("the I/O queue is closed")
        if self._waiting:
            raise RuntimeError("the I/O queue is in use by another thread; open one for each")
        return 0

    cdef int _keep(self, int slot, object token, object views) except -1:
        if slot == -errno.EBUSY:
            raise ValueError(f"{self._depth} operations are in flight already, which is the depth")
        if slot < 0:
            raise ValueError(f"the operation is not possible: {os.strerror(-slot)}")
        self._held[slot] = (token, views)
        return 0

    @property
    def engine(self) -> str:
        self._check()
        return "io_uring" if mkv_ring_is_io_uring(self._ring) else "pread"

    @property
    def fallback_reason(self) -> str:
        self._check()
        return mkv_ring_fallback_reason(self._ring).decode()

    @property
    def in_flight(self) -> int:
        return mkv_ring_in_flight(self._ring) if self._ring != NULL else 0

    def register_arena(self, arena) -> bool:
        cdef iovec part
        self._check()
        cdef object view = _view(arena, True, &part)
        if mkv_ring_register(self._ring, part.iov_base, part.iov_len) != 0:
            return False
        self._arenas.append(view)
        return True

    def guard(self, int fd) -> bool:
        self._check()
        return mkv_ring_guard(self._ring, fd) == 0

    def read(self, token, uint64_t offset, buffers):
        self._transfer(token, offset, buffers, True)

    def write(self, token, uint64_t offset, buffers):
        self._transfer(token, offset, buffers, False)

    cdef int _transfer(self, object token, uint64_t offset, object buffers,
                       bint reading) except -1:
        cdef iovec parts[PARTS_MAX]
        cdef int slot
        cdef unsigned count = 0
        cdef list views = []
        self._check()
        for source in buffers:
            if count == PARTS_MAX:
                raise ValueError(f"more than {PARTS_MAX} buffers in one operation")
            views.append(_view(source, reading, &parts[count]))
            count += 1
        if reading:
            slot = mkv_ring_read(self._ring, offset, parts, count)
        else:
            slot = mkv_ring_write(self._ring, offset, parts, count)
        return self._keep(slot, token, views)

    def flush(self, token):
        self._check()
        self._keep(mkv_ring_flush(self._ring), token, None)

    def discard(self, token, uint64_t offset, uint64_t length):
        self._check()
        self._keep(mkv_ring_discard(self._ring, offset, length), token, None)

    def wait(self, unsigned min_complete, int timeout_ms):
        cdef int done
        cdef uint32_t slot
        self._check()
        self._waiting = True
        with nogil:
            done = mkv_ring_wait(self._ring, self._results, self._depth, min_complete, timeout_ms)
        self._waiting = False
        if done < 0:
            raise OSError(-done, f"the I/O queue failed: {os.strerror(-done)}")
        finished = []
        for i in range(done):
            slot = self._results[i].slot
            finished.append((self._held[slot][0], self._results[i].result))
            self._held[slot] = None
        return finished

    def close(self):
        cdef mkv_ring *ring = self._ring
        if ring == NULL:
            return
        self._check()
        self._ring = NULL
        with nogil:
            mkv_ring_close(ring)
        self._held = []
        self._arenas = []
