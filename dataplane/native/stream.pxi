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
    ssize_t mkv_stream_receive_ready(mkv_stream *stream, void *target, size_t len)
    int mkv_stream_discard(mkv_stream *stream, uint64_t len, uint64_t deadline_ns)
    int mkv_stream_send(mkv_stream *stream, iovec *parts, unsigned count, uint64_t deadline_ns)


cdef extern from "stream_tls.h" nogil:
    struct mkv_tls:
        pass
    enum:
        MKV_TLS_WHY_BYTES
        MKV_STREAM_NOT_TLS
    mkv_tls *mkv_tls_client(const void *authorities, size_t len, const char *name, char *why)
    mkv_tls *mkv_tls_server(const void *certificate, size_t certificate_len, const void *key,
                            size_t key_len, char *why)
    void mkv_tls_free(mkv_tls *tls)
    mkv_stream *mkv_stream_tls(int fd, const mkv_tls *tls)
    int mkv_stream_handshake(mkv_stream *stream, uint64_t deadline_ns)
    int mkv_stream_is_ahead(const mkv_stream *stream)
    const char *mkv_stream_why(const mkv_stream *stream)
    void mkv_stream_rekey_after(mkv_stream *stream, uint64_t bytes)


class StreamTimeout(Exception):
    """The deadline passed in the middle of a stream's work; its position is now unknown."""


class StreamClosed(Exception):
    """The peer closed or reset the connection, or this side shut the stream down."""


class TlsFailed(StreamClosed):
    """The peer speaks no TLS, or what it showed is not believed here."""


cdef object _stream_fault(mkv_stream *stream, long fault):
    if fault == MKV_STREAM_NOT_TLS:
        return TlsFailed((<bytes>mkv_stream_why(stream)).decode("utf-8", "replace"))
    if fault == MKV_STREAM_TIMEOUT:
        return StreamTimeout("the deadline passed before the peer sent or took everything")
    if fault == MKV_STREAM_CLOSED:
        return StreamClosed("the peer closed the connection")
    if fault == MKV_STREAM_SHUT:
        return StreamClosed("the stream was shut down here")
    return StreamClosed(f"the connection failed: {os.strerror(-fault)}")


cdef class TlsContext:
    cdef mkv_tls *_tls

    def __init__(self):
        raise TypeError("TlsContext.client(...) and TlsContext.server(...) make one")

    def __dealloc__(self):
        mkv_tls_free(self._tls)

    @staticmethod
    def client(bytes authorities not None, str name not None):
        cdef char why[MKV_TLS_WHY_BYTES]
        cdef TlsContext made = TlsContext.__new__(TlsContext)
        made._tls = mkv_tls_client(PyBytes_AS_STRING(authorities), PyBytes_GET_SIZE(authorities),
                                   name.encode(), why)
        if made._tls == NULL:
            raise ValueError((<bytes>why).decode("utf-8", "replace"))
        return made

    @staticmethod
    def server(bytes certificate not None, bytes key not None):
        cdef char why[MKV_TLS_WHY_BYTES]
        cdef TlsContext made = TlsContext.__new__(TlsContext)
        made._tls = mkv_tls_server(PyBytes_AS_STRING(certificate), PyBytes_GET_SIZE(certificate),
                                   PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), why)
        if made._tls == NULL:
            raise ValueError((<bytes>why).decode("utf-8", "replace"))
        return made


cdef class Stream:
    cdef mkv_stream *_stream
    cdef int _users      # calls inside C without the GIL; the last one out closes the fd
    cdef bint _closing

    def __cinit__(self, int fd, *, bint takes_fds=False, TlsContext tls=None):
        if tls is not None:
            self._stream = mkv_stream_tls(fd, tls._tls)
        else:
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
        cdef object error = _stream_fault(self._stream, fault) if fault < 0 else None
        self._users -= 1
        if self._closing and self._users == 0:
            self._release()
        if error is not None:
            raise error
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

    @property
    def is_ahead(self) -> bool:
        return self._stream != NULL and mkv_stream_is_ahead(self._stream)

    def handshake(self, uint64_t deadline_ns):
        cdef int fault
        cdef mkv_stream *stream = self._enter()
        with nogil:
            fault = mkv_stream_handshake(stream, deadline_ns)
        self._leave(fault)

    def rekey_after(self, uint64_t size_bytes):
        mkv_stream_rekey_after(self._enter(), size_bytes)
        self._leave(0)

    def receive_ready(self, target):
        cdef iovec part
        cdef ssize_t done
        cdef object view = _view(target, True, &part)
        if part.iov_len == 0:
            raise ValueError("the target is empty")
        cdef mkv_stream *stream = self._enter()
        with nogil:
            done = mkv_stream_receive_ready(stream, part.iov_base, part.iov_len)
        self._leave(0 if done == -errno.EAGAIN else done)
        return None if done == -errno.EAGAIN else done

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
