# A GET of one block on a stream, over src/single.h: received, checked and answered without a Python
# object for each part of a frame.

cdef extern from "single.h" nogil:
    enum:
        MKV_SINGLE_GET_BYTES
        MKV_SINGLE_HIT_BYTES_MAX
    struct mkv_header:
        uint64_t request_id
        uint32_t deadline_ms
        uint64_t map_epoch
        uint32_t map_term
    struct mkv_get_item:
        uint8_t block_id[32]
        uint64_t max_length
    int mkv_single_get_parse(const uint8_t *bytes, size_t len, mkv_header *header,
                             mkv_get_item *item)
    void mkv_single_get_frame(uint8_t *frame, const uint8_t *block_id, uint64_t max_length,
                              uint64_t map_epoch, uint32_t map_term)
    size_t mkv_single_hit_frame(uint8_t *frame, uint64_t request_id, uint64_t length,
                                const uint8_t *root, const uint8_t *sums, uint32_t chunk_count,
                                uint32_t source)


cdef class SingleGet:
    cdef readonly bytes block_id
    cdef readonly uint64_t max_length
    cdef readonly uint64_t request_id
    cdef readonly uint32_t deadline_ms
    cdef readonly uint64_t map_epoch
    cdef readonly uint32_t map_term

    def __init__(self):
        raise TypeError("a SingleGet comes from receive_get")


def receive_get(Stream stream not None, target, uint64_t deadline_ns):
    cdef iovec part
    cdef ssize_t done
    cdef mkv_header header
    cdef mkv_get_item item
    cdef bint is_single
    cdef SingleGet request
    cdef object view = _view(target, True, &part)
    if part.iov_len == 0:
        raise ValueError("the target is empty")
    cdef mkv_stream *c_stream = stream._enter()
    with nogil:
        if deadline_ns:
            done = mkv_stream_receive_some(c_stream, part.iov_base, part.iov_len, deadline_ns)
        else:
            done = mkv_stream_receive_ready(c_stream, part.iov_base, part.iov_len)
        is_single = done > 0 and mkv_single_get_parse(
            <const uint8_t *>part.iov_base, <size_t>done, &header, &item)
    if done == -errno.EAGAIN:
        stream._leave(0)
        return None
    stream._leave(done)
    if not is_single:
        return done
    request = SingleGet.__new__(SingleGet)
    request.block_id = PyBytes_FromStringAndSize(<char *>item.block_id, 32)
    request.max_length = item.max_length
    request.request_id = header.request_id
    request.deadline_ms = header.deadline_ms
    request.map_epoch = header.map_epoch
    request.map_term = header.map_term
    return request


def send_hit(Stream stream not None, uint64_t request_id, bytes root not None, bytes sums not None,
             payload, uint32_t source, uint64_t deadline_ns):
    cdef uint8_t frame[MKV_SINGLE_HIT_BYTES_MAX]
    cdef iovec parts[2]
    cdef int fault
    cdef object view = _view(payload, False, &parts[1])
    cdef Py_ssize_t chunk_count = PyBytes_GET_SIZE(sums) // 8
    if PyBytes_GET_SIZE(root) != 16 or PyBytes_GET_SIZE(sums) % 8 or \
            chunk_count > MKV_CHUNKS_PER_BLOCK_MAX:
        raise ValueError("the root or the sums have a wrong length")
    parts[0].iov_base = frame
    parts[0].iov_len = mkv_single_hit_frame(
        frame, request_id, parts[1].iov_len, <const uint8_t *>PyBytes_AS_STRING(root),
        <const uint8_t *>PyBytes_AS_STRING(sums), <uint32_t>chunk_count, source)
    cdef mkv_stream *c_stream = stream._enter()
    with nogil:
        fault = mkv_stream_send(c_stream, parts, 2, deadline_ns)
    stream._leave(fault)
