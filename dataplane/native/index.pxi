# The block index: see src/index.h. Every method is one step under the GIL.

cdef extern from "index.h" nogil:
    const uint32_t MKV_INDEX_CAPACITY_MAX
    const uint64_t MKV_INDEX_SECTOR_MAX
    const uint32_t MKV_INDEX_NO_BUFFER
    struct mkv_entry:
        uint32_t stamp
        uint32_t expiry_s
        uint32_t buffer
        uint16_t tenant
        uint16_t slot
        uint16_t depth
        uint16_t flags
    struct mkv_record:
        const uint8_t *id
        uint64_t sector
        uint32_t expiry_s
        uint32_t stamp
        uint16_t sectors
        uint16_t tenant
        uint16_t slot
        uint16_t depth
    struct mkv_index:
        uint32_t capacity
        uint32_t used
        uint32_t count
    int mkv_index_open(
        mkv_index *index, uint32_t capacity, unsigned tag_bits, bint check_tenant,
        const uint8_t *hash_key)
    void mkv_index_close(mkv_index *index)
    void mkv_index_clear(mkv_index *index)
    size_t mkv_index_memory_bytes(const mkv_index *index)
    uint64_t mkv_entry_sector(const mkv_entry *entry)
    uint16_t mkv_entry_sectors(const mkv_entry *entry)
    mkv_entry *mkv_index_entry(mkv_index *index, uint32_t handle)
    void mkv_entry_move(mkv_entry *entry, uint64_t sector, uint16_t sectors)
    int32_t mkv_index_find(const mkv_index *index, uint16_t tenant, const uint8_t *id)
    void mkv_index_find_many(
        const mkv_index *index, uint16_t tenant, const uint8_t *ids, size_t count, uint32_t now_s,
        int32_t *handles)
    int32_t mkv_index_insert(mkv_index *index, const mkv_record *record)
    void mkv_index_remove(mkv_index *index, uint32_t handle)
    void mkv_index_touch_many(
        mkv_index *index, const uint32_t *handles, size_t count, uint32_t stamp)
    size_t mkv_index_slot_handles(
        const mkv_index *index, uint16_t slot, uint32_t first, uint32_t end, uint32_t *handles,
        size_t room)
    const size_t MKV_INDEX_LISTED_BYTES
    size_t mkv_index_tenant_blocks(
        const mkv_index *index, uint16_t tenant, uint32_t first, uint32_t end, uint32_t now_s,
        uint8_t *listed)
    uint32_t mkv_index_remove_sectors(mkv_index *index, uint64_t first, uint64_t end)

cdef enum:
    SLOT_HANDLES_AT_ONCE = 4096  # 16 KiB of stack


cdef inline const uint8_t *id_bytes(bytes block_id) except NULL:
    if PyBytes_GET_SIZE(block_id) != 32:
        raise ValueError(f"block_id has {len(block_id)} bytes; 32 wanted")
    return <const uint8_t *>PyBytes_AS_STRING(block_id)


cdef inline int check_sector(uint64_t sector) except -1:
    if sector > MKV_INDEX_SECTOR_MAX:
        raise ValueError(f"sector {sector} does not fit 40 bits")
    return 0


cdef class BlockIndex:
    cdef mkv_index table

    def __cinit__(self, capacity, *, tag_bits=128, check_tenant=True, bytes hash_key=bytes(16)):
        cdef int error
        if not 1 <= capacity <= MKV_INDEX_CAPACITY_MAX:
            raise ValueError(f"capacity is {capacity}; 1 to {MKV_INDEX_CAPACITY_MAX} blocks wanted")
        if not 1 <= tag_bits <= 128:
            raise ValueError(f"tag_bits is {tag_bits}; 1 to 128 wanted")
        if len(hash_key) != 16:
            raise ValueError(f"hash_key has {len(hash_key)} bytes; 16 wanted")
        error = mkv_index_open(
            &self.table, capacity, tag_bits, check_tenant,
            <const uint8_t *>PyBytes_AS_STRING(hash_key))
        if error:
            raise MemoryError(f"no memory for an index of {capacity} blocks (errno {error})")

    def __dealloc__(self):
        mkv_index_close(&self.table)

    cdef mkv_entry *entry(self, uint32_t handle) except NULL:
        cdef mkv_entry *entry = mkv_index_entry(&self.table, handle)
        if entry == NULL:
            raise ValueError(f"handle {handle} names no entry")
        return entry

    @property
    def capacity(self) -> int:
        return self.table.capacity

    @property
    def memory_bytes(self) -> int:
        return mkv_index_memory_bytes(&self.table)

    @property
    def handles_end(self) -> int:
        return self.table.used

    def __len__(self) -> int:
        return self.table.count

    def clear(self) -> None:
        mkv_index_clear(&self.table)

    def find(self, uint16_t tenant, bytes block_id not None) -> int:
        return mkv_index_find(&self.table, tenant, id_bytes(block_id))

    def insert(self, uint16_t tenant, bytes block_id not None, uint16_t slot, uint64_t sector,
               uint16_t sectors, uint32_t expiry_s, uint32_t depth, uint64_t stamp) -> int:
        cdef mkv_record record
        check_sector(sector)
        record.id = id_bytes(block_id)
        record.sector = sector
        record.expiry_s = expiry_s
        record.stamp = <uint32_t>stamp
        record.sectors = sectors
        record.tenant = tenant
        record.slot = slot
        record.depth = <uint16_t>min(depth, <uint32_t>65535)
        return mkv_index_insert(&self.table, &record)

    def remove(self, uint32_t handle) -> None:
        self.entry(handle)
        mkv_index_remove(&self.table, handle)

    def remove_if_at(self, uint16_t tenant, bytes block_id not None, uint64_t sector) -> bool:
        cdef int32_t handle = mkv_index_find(&self.table, tenant, id_bytes(block_id))
        if handle < 0 or mkv_entry_sector(mkv_index_entry(&self.table, handle)) != sector:
            return False
        mkv_index_remove(&self.table, handle)
        return True

    def location(self, uint32_t handle) -> tuple:
        cdef mkv_entry *entry = self.entry(handle)
        return mkv_entry_sector(entry), mkv_entry_sectors(entry)

    def relocate(self, uint32_t handle, uint64_t sector) -> None:
        cdef mkv_entry *entry = self.entry(handle)
        check_sector(sector)
        mkv_entry_move(entry, sector, mkv_entry_sectors(entry))

    def expiry_s(self, uint32_t handle) -> int:
        return self.entry(handle).expiry_s

    def set_expiry_s(self, uint32_t handle, uint32_t expiry_s) -> None:
        self.entry(handle).expiry_s = expiry_s

    def stamp(self, uint32_t handle) -> int:
        return self.entry(handle).stamp

    def slot(self, uint32_t handle) -> int:
        return self.entry(handle).slot

    def tenant(self, uint32_t handle) -> int:
        return self.entry(handle).tenant

    def depth(self, uint32_t handle) -> int:
        return self.entry(handle).depth

    def buffer(self, uint32_t handle) -> int:
        cdef uint32_t buffer = self.entry(handle).buffer
        return -1 if buffer == MKV_INDEX_NO_BUFFER else <int64_t>buffer

    def set_buffer(self, uint32_t handle, int64_t buffer) -> None:
        cdef mkv_entry *entry = self.entry(handle)
        if not -1 <= buffer < <int64_t>MKV_INDEX_NO_BUFFER:
            raise ValueError(f"buffer {buffer} is neither -1 nor a number of 32 bits")
        entry.buffer = MKV_INDEX_NO_BUFFER if buffer < 0 else <uint32_t>buffer

    def flags(self, uint32_t handle) -> int:
        return self.entry(handle).flags

    def set_flags(self, uint32_t handle, uint16_t flags) -> None:
        self.entry(handle).flags = flags

    def touch(self, uint32_t handle, uint64_t stamp) -> None:
        self.entry(handle).stamp = <uint32_t>stamp

    def find_many(self, uint16_t tenant, bytes block_ids not None, uint32_t now_s) -> bytes:
        cdef Py_ssize_t count = count_of(block_ids, 32, "block_ids")
        cdef bytes result = new_bytes(4 * count)
        mkv_index_find_many(
            &self.table, tenant, <const uint8_t *>PyBytes_AS_STRING(block_ids), count, now_s,
            <int32_t *>PyBytes_AS_STRING(result))
        return result

    def exists_many(self, uint16_t tenant, bytes block_ids not None, uint32_t now_s) -> bytes:
        cdef bytes result = self.find_many(tenant, block_ids, now_s)
        cdef int32_t *found = <int32_t *>PyBytes_AS_STRING(result)
        cdef Py_ssize_t i
        for i in range(PyBytes_GET_SIZE(result) // 4):
            found[i] = found[i] >= 0
        return result

    def touch_many(self, bytes handles not None, uint64_t stamp) -> None:
        mkv_index_touch_many(
            &self.table, <const uint32_t *>PyBytes_AS_STRING(handles),
            count_of(handles, 4, "handles"), <uint32_t>stamp)

    def handles_of_slot(self, uint16_t slot, uint32_t first=0, uint32_t end=0xFFFFFFFF) -> bytes:
        cdef uint32_t found[SLOT_HANDLES_AT_ONCE]
        cdef list parts = []
        cdef size_t count
        while True:
            count = mkv_index_slot_handles(
                &self.table, slot, first, end, found, SLOT_HANDLES_AT_ONCE)
            parts.append(PyBytes_FromStringAndSize(<char *>found, 4 * count))
            if count < SLOT_HANDLES_AT_ONCE:
                return b"".join(parts)
            first = found[count - 1] + 1

    def blocks_of_tenant(
        self, uint16_t tenant, uint32_t first, uint32_t end, uint32_t now_s
    ) -> bytes:
        if end > self.table.used:
            end = self.table.used
        if first >= end:
            return b""
        cdef bytes result = PyBytes_FromStringAndSize(NULL, MKV_INDEX_LISTED_BYTES * (end - first))
        cdef size_t count = mkv_index_tenant_blocks(
            &self.table, tenant, first, end, now_s, <uint8_t *>PyBytes_AS_STRING(result))
        return result[:MKV_INDEX_LISTED_BYTES * count]

    def remove_sectors(self, uint64_t first, uint64_t end) -> int:
        return mkv_index_remove_sectors(&self.table, first, end)
