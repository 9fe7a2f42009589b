# Stream over src/stream.h.

from libc.errno cimport errno as c_errno

cdef extern from "stream.h" nogil:
    struct mkv_stream:
        int fd
    enum:
        MKV_STREAM_TIMEOUT
        MKV_STREAM_CLOSED
        MKV_STREAM_SHUT
        MKV_PASSED_FDS_MAX
    mkv_stream *mkv_stream_plain(int fd)
    mkv_stream *mkv_stream_local(int fd)
    unsigned mkv_stream_take_fds(mkv_stream *stream, int *fds)
    void mkv_stream_stop_receiving(mkv_stream *stream)
    void mkv_stream_free(mkv_stream *stream)
    void mkv_stream_shutdown(mkv_stream *stream)
    int mkv_stream_receive(mkv_stream *stream, void *target, size_t len, uint64_t deadline_ns)
    int mkv_stream_receive_and_sum(mkv_stream *stream, void *target, size_t len, uint64_t *sums,
                                   uint64_t deadline_ns)
    ssize_t mkv_stream_receive_some(mkv_stream *stream, void *target, size_t len,
                                    uint64_t deadline_ns)
    int mkv_stream_discard(mkv_stream *stream, uint64_t len, uint64_t deadline_ns)
    int mkv_stream_send(mkv_stream *stream, iovec *parts, unsigned count, uint64_t deadline_ns)


class StreamTimeout(Exception):
    """The deadline passed in the middle of a stream's work; its position is now unknown."""


class StreamClosed(Exception):
    """The peer closed or reset the connection, or this side shut the stream down."""


cdef object _stream_fault(long fault):
    if fault == MKV_STREAM_TIMEOUT:
        return StreamTimeout("the deadline passed before the peer sent or took everything")
    if fault == MKV_STREAM_CLOSED:
        return StreamClosed("the peer closed the connection")
    if fault == MKV_STREAM_SHUT:
        return StreamClosed("the stream was shut down here")
    return StreamClosed(f"the connection failed: {os.strerror(-fault)}")


cdef class Stream:
    cdef mkv_stream *_stream
    cdef int _users      # calls inside C without the GIL; the last one out closes the fd
    cdef bint _closing

    def __cinit__(self, int fd, *, bint takes_fds=False):
        self._stream = mkv_stream_local(fd) if takes_fds else mkv_stream_plain(fd)
        if self._stream == NULL:
            raise OSError(c_errno, f"fd {fd} cannot become a stream: {os.strerror(c_errno)}")

    def __dealloc__(self):
        if self._stream != NULL:
            mkv_stream_free(self._stream)

    cdef mkv_stream *_enter(self) except NULL:
        if self._stream == NULL or self._closing:
            raise StreamClosed("the stream is closed")
        self._users += 1
        return self._stream

    cdef int _leave(self, long fault) except -1:
        self._users -= 1
        if self._closing and self._users == 0:
            self._release()
        if fault < 0:
            raise _stream_fault(fault)
        return 0

    cdef void _release(self):
        cdef mkv_stream *stream = self._stream
        self._stream = NULL
        mkv_stream_free(stream)

    cdef mkv_stream *_surrender(self) except NULL:
        """Give the C stream to a new owner; this object is closed from now on."""
        cdef mkv_stream *stream = self._stream
        if stream == NULL or self._closing:
            raise StreamClosed("the stream is closed")
        if self._users:
            raise RuntimeError("the stream is in use by another thread")
        self._stream = NULL
        return stream

    @property
    def fd(self) -> int:
        return self._stream.fd if self._stream != NULL else -1

    def receive(self, target, uint64_t deadline_ns):
        cdef iovec part
        cdef int fault
        cdef object view = _view(target, True, &part)
        cdef mkv_stream *stream = self._enter()
        with nogil:
            fault = mkv_stream_receive(stream, part.iov_base, part.iov_len, deadline_ns)
        self._leave(fault)

    def receive_and_sum(self, target, uint64_t deadline_ns):
        cdef iovec part
        cdef int fault
        cdef object view = _view(target, True, &part)
        cdef bytes sums = PyBytes_FromStringAndSize(NULL, 8 * mkv_chunk_count(part.iov_len))
        cdef uint64_t *sums_at = <uint64_t *>PyBytes_AS_STRING(sums)
        cdef mkv_stream *stream = self._enter()
        with nogil:
            fault = mkv_stream_receive_and_sum(stream, part.iov_base, part.iov_len, sums_at,
                                               deadline_ns)
        self._leave(fault)
        return sums

    def receive_some(self, target, uint64_t deadline_ns):
        cdef iovec part
        cdef ssize_t done
        cdef object view = _view(target, True, &part)
        if part.iov_len == 0:
            raise ValueError("the target is empty")
        cdef mkv_stream *stream = self._enter()
        with nogil:
            done = mkv_stream_receive_some(stream, part.iov_base, part.iov_len, deadline_ns)
        self._leave(done)
        return done

    def discard(self, uint64_t length, uint64_t deadline_ns):
        cdef int fault
        cdef mkv_stream *stream = self._enter()
        with nogil:
            fault = mkv_stream_discard(stream, length, deadline_ns)
        self._leave(fault)

    def send(self, buffers, uint64_t deadline_ns):
        cdef unsigned count = 0
        cdef int fault
        cdef list sources = list(buffers)
        cdef list views = []
        cdef mkv_stream *stream
        cdef iovec few[16]
        cdef iovec *parts = few
        if len(sources) > 16:
            parts = <iovec *>malloc(len(sources) * sizeof(iovec))
            if parts == NULL:
                raise MemoryError("no memory for the list of buffers")
        try:
            for source in sources:
                views.append(_view(source, False, &parts[count]))
                count += 1
            stream = self._enter()
            with nogil:
                fault = mkv_stream_send(stream, parts, count, deadline_ns)
            self._leave(fault)
        finally:
            if parts != few:
                free(parts)

    def take_fds(self) -> list:
        cdef int fds[MKV_PASSED_FDS_MAX]
        cdef unsigned count
        cdef mkv_stream *stream = self._enter()
        count = mkv_stream_take_fds(stream, fds)
        self._leave(0)
        return [fds[i] for i in range(count)]

    def stop_receiving(self):
        if self._stream != NULL:
            mkv_stream_stop_receiving(self._stream)

    def shutdown(self):
        if self._stream != NULL:
            mkv_stream_shutdown(self._stream)

    def close(self):
        if self._stream == NULL or self._closing:
            return
        if self._users:
            self._closing = True
            mkv_stream_shutdown(self._stream)
        else:
            self._release()
