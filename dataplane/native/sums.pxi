# Checksums, block ids, slots and the content pattern: see src/sums.h, keys.h, pattern.h.
#
# Giving up the GIL is not free: beside a busy Python thread it takes up to a switch interval (5 ms)
# to get it back. So short work keeps it, and "no GIL" in the .pyi means: when there is enough work.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.bytes cimport PyBytes_Check
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.unicode cimport PyUnicode_Check
from libc.stddef cimport size_t
from libc.stdint cimport (
    int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t,
)
from libc.string cimport memcpy

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    int PyBUF_WRITE

cdef extern from "sums.h" nogil:
    const size_t MKV_CHUNK_BYTES
    const int MKV_CHUNKS_PER_BLOCK_MAX
    uint64_t mkv_xxh3_64(const void *data, size_t len)
    void mkv_xxh3_128(const void *data, size_t len, uint64_t *halves)
    size_t mkv_chunk_count(size_t len)
    void mkv_chunk_sums(const void *data, size_t len, uint64_t *sums)
    void mkv_copy_and_sum(void *target, const void *source, size_t len, uint64_t *sums)
    int mkv_block_root(
        const uint8_t *id, const uint8_t *tag, uint64_t length, const uint64_t *sums, size_t count,
        uint8_t *out)
    const char *mkv_sums_engine()

cdef extern from "keys.h" nogil:
    const int MKV_USER_KEY_BYTES_MAX
    const int MKV_TENANT_SALT_BYTES_MAX
    struct mkv_key:
        const char *data
        size_t len
    size_t mkv_block_ids(
        const mkv_key *keys, size_t count, const uint8_t *salt, size_t salt_len, uint8_t *ids)
    void mkv_slots_of(const uint8_t *ids, size_t count, uint32_t slots, uint16_t *out)
    size_t mkv_group_by_owner(
        const uint16_t *slots, size_t count, const uint16_t *owners, size_t slots_count,
        uint32_t *starts, uint32_t *positions, uint32_t *owner_last)
    size_t mkv_gather(
        const uint8_t *records, size_t records_count, size_t width, const uint32_t *positions,
        size_t count, uint8_t *out)

cdef extern from "pattern.h" nogil:
    void mkv_pattern_fill(void *target, size_t len, uint64_t seed, uint64_t offset)
    size_t mkv_pattern_check(const void *data, size_t len, uint64_t seed, uint64_t offset)

cdef enum:
    KEEP_GIL_BYTES_MAX = 65536  # summed in about 3 us
    KEEP_GIL_KEYS_MAX = 4096    # hashed in about 1 ms

sums_engine = (<bytes>mkv_sums_engine()).decode()


cdef Py_ssize_t count_of(bytes records, Py_ssize_t width, str name) except -1:
    """Return how many records of `width` bytes there are; ValueError when the length is odd."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(records)
    if size % width:
        raise ValueError(f"{name} has {size} bytes, not a multiple of {width}")
    return size // width


cdef inline bytes new_bytes(Py_ssize_t size):
    return PyBytes_FromStringAndSize(NULL, size)


def xxh3_64(data) -> int:
    cdef Py_buffer view
    cdef uint64_t result
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    if <size_t>view.len <= KEEP_GIL_BYTES_MAX:
        result = mkv_xxh3_64(view.buf, view.len)
    else:
        with nogil:
            result = mkv_xxh3_64(view.buf, view.len)
    PyBuffer_Release(&view)
    return result


def xxh3_128(data) -> bytes:
    cdef Py_buffer view
    cdef uint64_t halves[2]
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    if <size_t>view.len <= KEEP_GIL_BYTES_MAX:
        mkv_xxh3_128(view.buf, view.len, halves)
    else:
        with nogil:
            mkv_xxh3_128(view.buf, view.len, halves)
    PyBuffer_Release(&view)
    return PyBytes_FromStringAndSize(<const char *>halves, 16)


def chunk_sums(data) -> bytes:
    cdef Py_buffer view
    cdef bytes result
    cdef uint64_t *sums
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        result = new_bytes(8 * mkv_chunk_count(view.len))
        sums = <uint64_t *>PyBytes_AS_STRING(result)
        if <size_t>view.len <= KEEP_GIL_BYTES_MAX:
            mkv_chunk_sums(view.buf, view.len, sums)
        else:
            with nogil:
                mkv_chunk_sums(view.buf, view.len, sums)
    finally:
        PyBuffer_Release(&view)
    return result


def block_root(bytes block_id not None, bytes tenant_tag not None, uint64_t length,
               bytes sums not None) -> bytes:
    cdef bytes result
    cdef Py_ssize_t count = count_of(sums, 8, "sums")
    if PyBytes_GET_SIZE(block_id) != 32 or PyBytes_GET_SIZE(tenant_tag) != 16:
        raise ValueError(
            f"block_id has {len(block_id)} bytes, tenant_tag {len(tenant_tag)}; 32 and 16 wanted")
    result = new_bytes(16)
    if mkv_block_root(
        <const uint8_t *>PyBytes_AS_STRING(block_id),
        <const uint8_t *>PyBytes_AS_STRING(tenant_tag),
        length,
        <const uint64_t *>PyBytes_AS_STRING(sums),
        count,
        <uint8_t *>PyBytes_AS_STRING(result),
    ) != 0:
        raise ValueError(f"{count} sums; a block has at most {MKV_CHUNKS_PER_BLOCK_MAX}")
    return result


cdef int take_key(object key, Py_ssize_t index, mkv_key *out) except -1:
    """Point `out` at the key's bytes, which live as long as the key."""
    cdef Py_ssize_t size
    if PyUnicode_Check(key):
        try:
            out.data = PyUnicode_AsUTF8AndSize(key, &size)
        except UnicodeEncodeError as error:
            raise ValueError(f"keys[{index}] cannot be encoded as UTF-8: {error.reason}") from None
        out.len = size
    elif PyBytes_Check(key):
        out.data = PyBytes_AS_STRING(key)
        out.len = PyBytes_GET_SIZE(key)
    else:
        raise TypeError(f"keys[{index}] is {type(key).__name__}; str or bytes wanted")
    return 0


def block_ids(keys, bytes salt not None) -> bytes:
    cdef tuple held
    cdef bytes result
    cdef Py_ssize_t count, i, salt_len = PyBytes_GET_SIZE(salt)
    cdef size_t done
    cdef const uint8_t *salt_at = <const uint8_t *>PyBytes_AS_STRING(salt)
    cdef uint8_t *ids
    cdef mkv_key *table
    if PyUnicode_Check(keys) or PyBytes_Check(keys):
        raise TypeError(f"keys is one {type(keys).__name__}; a sequence of keys wanted")
    if salt_len > MKV_TENANT_SALT_BYTES_MAX:
        raise ValueError(f"salt has {salt_len} bytes; at most {MKV_TENANT_SALT_BYTES_MAX}")
    held = tuple(keys)  # holds the keys while the GIL is away, whatever happens to the list
    count = len(held)
    result = new_bytes(32 * count)
    ids = <uint8_t *>PyBytes_AS_STRING(result)
    table = <mkv_key *>PyMem_Malloc(max(count, 1) * sizeof(mkv_key))
    if table == NULL:
        raise MemoryError
    try:
        for i in range(count):
            take_key(held[i], i, &table[i])
        if count <= KEEP_GIL_KEYS_MAX:
            done = mkv_block_ids(table, count, salt_at, salt_len, ids)
        else:
            with nogil:
                done = mkv_block_ids(table, count, salt_at, salt_len, ids)
        if done < <size_t>count:
            raise ValueError(
                f"keys[{done}] has {table[done].len} bytes; 1 to {MKV_USER_KEY_BYTES_MAX} wanted")
    finally:
        PyMem_Free(table)
    return result


def block_name(key, bytes salt not None, slots) -> tuple:
    cdef mkv_key one
    cdef uint16_t slot
    cdef bytes block_id = new_bytes(32)
    cdef uint8_t *id_at = <uint8_t *>PyBytes_AS_STRING(block_id)
    if PyBytes_GET_SIZE(salt) > MKV_TENANT_SALT_BYTES_MAX:
        raise ValueError(f"salt has {len(salt)} bytes; at most {MKV_TENANT_SALT_BYTES_MAX}")
    if not 1 <= slots <= 65536:
        raise ValueError(f"slots is {slots}; 1 to 65536 wanted")
    take_key(key, 0, &one)
    if mkv_block_ids(&one, 1, <const uint8_t *>PyBytes_AS_STRING(salt), PyBytes_GET_SIZE(salt),
                     id_at) != 1:
        raise ValueError(f"keys[0] has {one.len} bytes; 1 to {MKV_USER_KEY_BYTES_MAX} wanted")
    mkv_slots_of(id_at, 1, slots, &slot)
    return block_id, slot


def slots_of(bytes block_ids not None, slots) -> bytes:
    cdef Py_ssize_t count = count_of(block_ids, 32, "block_ids")
    cdef bytes result
    if not 1 <= slots <= 65536:
        raise ValueError(f"slots is {slots}; 1 to 65536 wanted")
    result = new_bytes(2 * count)
    mkv_slots_of(
        <const uint8_t *>PyBytes_AS_STRING(block_ids), count, slots,
        <uint16_t *>PyBytes_AS_STRING(result))
    return result


cdef list owner_groups(const uint32_t *starts, const uint32_t *positions, uint32_t owner_last):
    cdef list groups = []
    cdef uint32_t owner, first, end
    for owner in range(owner_last + 1):
        first = starts[owner]
        end = starts[owner + 1]
        if first < end:
            groups.append(
                (owner, PyBytes_FromStringAndSize(<char *>(positions + first), 4 * (end - first))))
    return groups


def group_by_owner(bytes slots not None, bytes owners not None) -> list:
    cdef Py_ssize_t count = count_of(slots, 2, "slots"), table = count_of(owners, 2, "owners")
    cdef const uint16_t *slot_at = <const uint16_t *>PyBytes_AS_STRING(slots)
    cdef uint32_t owner_last = 0
    cdef size_t done
    cdef uint32_t *scratch
    if count == 0:
        return []
    scratch = <uint32_t *>PyMem_Malloc((65537 + count) * sizeof(uint32_t))
    if scratch == NULL:
        raise MemoryError
    try:
        done = mkv_group_by_owner(
            slot_at, count, <const uint16_t *>PyBytes_AS_STRING(owners), table, scratch,
            scratch + 65537, &owner_last)
        if done < <size_t>count:
            raise ValueError(f"slots[{done}] is {slot_at[done]}; owners has {table} slots")
        return owner_groups(scratch, scratch + 65537, owner_last)
    finally:
        PyMem_Free(scratch)


def gather(bytes records not None, Py_ssize_t width, bytes positions not None) -> bytes:
    cdef Py_ssize_t count = count_of(positions, 4, "positions"), table
    cdef const uint32_t *position_at = <const uint32_t *>PyBytes_AS_STRING(positions)
    cdef bytes result
    cdef size_t done
    if width < 1:
        raise ValueError(f"width is {width}; at least 1 wanted")
    table = count_of(records, width, "records")
    result = new_bytes(width * count)
    done = mkv_gather(
        <const uint8_t *>PyBytes_AS_STRING(records), table, width, position_at, count,
        <uint8_t *>PyBytes_AS_STRING(result))
    if done < <size_t>count:
        raise ValueError(f"positions[{done}] is {position_at[done]}; there are {table} records")
    return result


def fill_pattern(target, uint64_t seed, uint64_t offset=0) -> None:
    cdef Py_buffer view
    PyObject_GetBuffer(target, &view, PyBUF_WRITABLE)
    if <size_t>view.len <= KEEP_GIL_BYTES_MAX:
        mkv_pattern_fill(view.buf, view.len, seed, offset)
    else:
        with nogil:
            mkv_pattern_fill(view.buf, view.len, seed, offset)
    PyBuffer_Release(&view)


def check_pattern(data, uint64_t seed, uint64_t offset=0) -> int:
    cdef Py_buffer view
    cdef size_t right, size
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    size = view.len
    if size <= KEEP_GIL_BYTES_MAX:
        right = mkv_pattern_check(view.buf, size, seed, offset)
    else:
        with nogil:
            right = mkv_pattern_check(view.buf, size, seed, offset)
    PyBuffer_Release(&view)
    return -1 if right == size else <Py_ssize_t>right


cdef class BufferPair:
    """A writable target and a source of the same length, held until `release`."""

    cdef Py_buffer target
    cdef Py_buffer source
    cdef bint held

    def __cinit__(self, target, source):
        self.held = False
        PyObject_GetBuffer(target, &self.target, PyBUF_WRITABLE)
        try:
            PyObject_GetBuffer(source, &self.source, PyBUF_SIMPLE)
        except BaseException:
            PyBuffer_Release(&self.target)
            raise
        self.held = True
        if self.target.len != self.source.len:
            raise ValueError(f"target has {self.target.len} bytes, source {self.source.len}")

    def __dealloc__(self):
        self.release()

    cdef void release(self) noexcept:
        if self.held:
            self.held = False
            PyBuffer_Release(&self.source)
            PyBuffer_Release(&self.target)


def copy_memory(target, source) -> None:
    cdef BufferPair pair = BufferPair(target, source)
    if <size_t>pair.target.len <= KEEP_GIL_BYTES_MAX:
        memcpy(pair.target.buf, pair.source.buf, pair.target.len)
    else:
        with nogil:
            memcpy(pair.target.buf, pair.source.buf, pair.target.len)
    pair.release()


def copy_and_sum(target, source) -> bytes:
    cdef BufferPair pair = BufferPair(target, source)
    cdef size_t size = pair.target.len
    cdef bytes result = new_bytes(8 * mkv_chunk_count(size))
    cdef uint64_t *sums = <uint64_t *>PyBytes_AS_STRING(result)
    if size <= KEEP_GIL_BYTES_MAX:
        mkv_copy_and_sum(pair.target.buf, pair.source.buf, size, sums)
    else:
        with nogil:
            mkv_copy_and_sum(pair.target.buf, pair.source.buf, size, sums)
    pair.release()
    return result


def address_of(buffer) -> int:
    cdef Py_buffer view
    cdef uintptr_t address
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    address = <uintptr_t>view.buf
    PyBuffer_Release(&view)
    return address


def new_bytes(Py_ssize_t size_bytes) -> bytes:
    return PyBytes_FromStringAndSize(NULL, size_bytes)


def memory_at(uintptr_t address, Py_ssize_t size_bytes) -> memoryview:
    if address == 0 or size_bytes < 0:
        raise ValueError(f"no memory of {size_bytes} bytes at address {address}")
    return PyMemoryView_FromMemory(<char *>address, size_bytes, PyBUF_WRITE)
