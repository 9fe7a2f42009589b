"""Pure-Python twin of `memkv._hotpath` (sums and index): slow, short and obviously right.

Same names, arguments and results, handle numbers included; tests compare the two step by step. Do
not optimise this file, and share no code with the native one.
"""

import ctypes
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

if TYPE_CHECKING:
    from typing_extensions import Buffer

_CHUNK_BYTES = 256 * 1024
_U32 = 2**32
_U64 = 2**64
_GOLDEN = 0x9E3779B97F4A7C15

sums_engine = "oracle"


def xxh3_64(data: "Buffer") -> int:
    return xxhash.xxh3_64_intdigest(bytes(data))


def xxh3_128(data: "Buffer") -> bytes:
    return xxhash.xxh3_128_digest(bytes(data))[::-1]  # xxhash gives the high half first


def chunk_sums(data: "Buffer") -> bytes:
    view = bytes(data)
    chunks = [view[at : at + _CHUNK_BYTES] for at in range(0, len(view), _CHUNK_BYTES)]
    return b"".join(struct.pack("<Q", xxh3_64(chunk)) for chunk in chunks)


def block_root(block_id: bytes, tenant_tag: bytes, length: int, sums: bytes) -> bytes:
    if len(block_id) != 32 or len(tenant_tag) != 16 or len(sums) % 8 or len(sums) > 8 * 64:
        raise ValueError("block_id, tenant_tag or sums has a wrong length")
    bound = block_id + tenant_tag + struct.pack("<Q", length) + sums
    root = xxhash.xxh3_128_intdigest(bound)
    return struct.pack("<QQ", root % _U64, root // _U64)


def block_ids(keys: Sequence[str | bytes], salt: bytes) -> bytes:
    if isinstance(keys, str | bytes):
        raise TypeError("keys is one key; a sequence of keys wanted")
    return b"".join(_block_id(index, key, salt) for index, key in enumerate(keys))


def _block_id(index: int, key: str | bytes, salt: bytes) -> bytes:
    try:
        data = key.encode() if isinstance(key, str) else key
    except UnicodeEncodeError:
        raise ValueError(f"keys[{index}] cannot be encoded as UTF-8") from None
    if not isinstance(data, bytes):
        raise TypeError(f"keys[{index}] is {type(key).__name__}; str or bytes wanted")
    if not 1 <= len(data) <= 512:
        raise ValueError(f"keys[{index}] has {len(data)} bytes; 1 to 512 wanted")
    canonical = struct.pack("<I", len(data)) + data
    return hashlib.blake2b(canonical, digest_size=32, key=salt).digest()


def block_name(key: str | bytes, salt: bytes, slots: int) -> tuple[bytes, int]:
    block_id = _block_id(0, key, salt)
    return block_id, int.from_bytes(slots_of(block_id, slots), "little")


def slots_of(block_ids: bytes, slots: int) -> bytes:
    if not 1 <= slots <= 65536:
        raise ValueError(f"slots is {slots}; 1 to 65536 wanted")
    ids = _records(block_ids, 32)
    return b"".join(struct.pack("<H", xxh3_64(block_id) % slots) for block_id in ids)


def group_by_owner(slots: bytes, owners: bytes) -> list[tuple[int, bytes]]:
    table = [int.from_bytes(owner, "little") for owner in _records(owners, 2)]
    groups: dict[int, bytes] = {}
    for position, record in enumerate(_records(slots, 2)):
        slot = int.from_bytes(record, "little")
        if slot >= len(table):
            raise ValueError(f"slots[{position}] is {slot}; owners has {len(table)} slots")
        groups[table[slot]] = groups.get(table[slot], b"") + struct.pack("<I", position)
    return sorted(groups.items())


def gather(records: bytes, width: int, positions: bytes) -> bytes:
    if width < 1:
        raise ValueError(f"width is {width}; at least 1 wanted")
    table = _records(records, width)
    wanted = [int.from_bytes(position, "little") for position in _records(positions, 4)]
    if any(position >= len(table) for position in wanted):
        raise ValueError(f"a position is past the {len(table)} records")
    return b"".join(table[position] for position in wanted)


def fill_pattern(target: "Buffer", seed: int, offset: int = 0) -> None:
    view = memoryview(target).cast("B")
    view[:] = _pattern(len(view), seed, offset)


def check_pattern(data: "Buffer", seed: int, offset: int = 0) -> int:
    found = bytes(data)
    right = _pattern(len(found), seed, offset)
    return next((at for at in range(len(found)) if found[at] != right[at]), -1)


def copy_memory(target: "Buffer", source: "Buffer") -> None:
    view, data = memoryview(target).cast("B"), bytes(source)
    if len(view) != len(data):
        raise ValueError(f"target has {len(view)} bytes, source {len(data)}")
    view[:] = data


def copy_and_sum(target: "Buffer", source: "Buffer") -> bytes:
    copy_memory(target, source)
    return chunk_sums(target)


def address_of(buffer: "Buffer") -> int:
    view = memoryview(buffer).cast("B")
    if view.readonly:
        raise ValueError("the oracle knows the address of writable buffers only")
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def new_bytes(size_bytes: int) -> bytes:
    return bytes(size_bytes)


def memory_at(address: int, size_bytes: int) -> memoryview:
    if address == 0 or size_bytes < 0:
        raise ValueError(f"no memory of {size_bytes} bytes at address {address}")
    return memoryview((ctypes.c_char * size_bytes).from_address(address)).cast("B")


def _records(data: bytes, width: int) -> list[bytes]:
    if len(data) % width:
        raise ValueError(f"{len(data)} bytes are not a multiple of {width}")
    return [data[at : at + width] for at in range(0, len(data), width)]


def _mix(word: int) -> int:
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % _U64
    word = (word ^ word >> 27) * 0x94D049BB133111EB % _U64
    return word ^ word >> 31


def _pattern(length: int, seed: int, offset: int) -> bytes:
    base = _mix((seed + _GOLDEN) % _U64)
    words = range(offset // 8, (offset + length + 7) // 8)
    data = b"".join(struct.pack("<Q", _mix((base + i * _GOLDEN) % _U64)) for i in words)
    return data[offset % 8 : offset % 8 + length]


@dataclass
class _Entry:
    tenant: int
    tag: int
    slot: int
    sector: int
    sectors: int
    expiry_s: int
    depth: int
    stamp: int
    buffer: int = -1
    flags: int = 0


class BlockIndex:
    """A dict from (tenant, tag) to a handle, and a list of entries by handle."""

    def __init__(
        self, capacity: int, *, tag_bits: int = 128, check_tenant: bool = True,
        hash_key: bytes = bytes(16),
    ) -> None:
        if not 1 <= capacity < 2**31 or not 1 <= tag_bits <= 128 or len(hash_key) != 16:
            raise ValueError("capacity, tag_bits or hash_key is out of range")
        self.capacity = capacity
        self.memory_bytes = 56 * capacity
        self._tag_bits = tag_bits
        self._check_tenant = check_tenant
        self.clear()

    def clear(self) -> None:
        self._handles: dict[tuple[int, int], int] = {}
        self._entries: list[_Entry | None] = []
        self._free: list[int] = []

    @property
    def handles_end(self) -> int:
        return len(self._entries)

    def __len__(self) -> int:
        return len(self._handles)

    def _name(self, tenant: int, block_id: bytes) -> tuple[int, int]:
        if len(block_id) != 32:
            raise ValueError(f"block_id has {len(block_id)} bytes; 32 wanted")
        tag = int.from_bytes(block_id[:16], "little") % 2**self._tag_bits
        return (tenant if self._check_tenant else 0), tag

    def _entry(self, handle: int) -> _Entry:
        entry = self._entries[handle] if handle < len(self._entries) else None
        if entry is None:
            raise ValueError(f"handle {handle} names no entry")
        return entry

    def find(self, tenant: int, block_id: bytes) -> int:
        return self._handles.get(self._name(tenant, block_id), -1)

    def insert(
        self, tenant: int, block_id: bytes, slot: int, sector: int, sectors: int, expiry_s: int,
        depth: int, stamp: int,
    ) -> int:
        if sector >= 2**40:
            raise ValueError(f"sector {sector} does not fit 40 bits")
        name = self._name(tenant, block_id)
        if name in self._handles:
            return -2
        if len(self) == self.capacity:
            return -1
        if not self._free:
            self._entries.append(None)
            self._free.append(len(self._entries) - 1)
        handle = self._free.pop()
        self._entries[handle] = _Entry(
            tenant, name[1], slot, sector, sectors, expiry_s, min(depth, 65535), stamp % _U32
        )
        self._handles[name] = handle
        return handle

    def remove(self, handle: int) -> None:
        entry = self._entry(handle)
        del self._handles[(entry.tenant if self._check_tenant else 0), entry.tag]
        self._entries[handle] = None
        self._free.append(handle)

    def remove_if_at(self, tenant: int, block_id: bytes, sector: int) -> bool:
        handle = self.find(tenant, block_id)
        if handle < 0 or self._entry(handle).sector != sector:
            return False
        self.remove(handle)
        return True

    def location(self, handle: int) -> tuple[int, int]:
        return self._entry(handle).sector, self._entry(handle).sectors

    def relocate(self, handle: int, sector: int) -> None:
        entry = self._entry(handle)
        if sector >= 2**40:
            raise ValueError(f"sector {sector} does not fit 40 bits")
        entry.sector = sector

    def expiry_s(self, handle: int) -> int:
        return self._entry(handle).expiry_s

    def set_expiry_s(self, handle: int, expiry_s: int) -> None:
        self._entry(handle).expiry_s = expiry_s

    def stamp(self, handle: int) -> int:
        return self._entry(handle).stamp

    def slot(self, handle: int) -> int:
        return self._entry(handle).slot

    def tenant(self, handle: int) -> int:
        return self._entry(handle).tenant

    def depth(self, handle: int) -> int:
        return self._entry(handle).depth

    def buffer(self, handle: int) -> int:
        return self._entry(handle).buffer

    def set_buffer(self, handle: int, buffer: int) -> None:
        entry = self._entry(handle)
        if not -1 <= buffer < _U32 - 1:
            raise ValueError(f"buffer {buffer} is neither -1 nor a number of 32 bits")
        entry.buffer = buffer

    def flags(self, handle: int) -> int:
        return self._entry(handle).flags

    def set_flags(self, handle: int, flags: int) -> None:
        self._entry(handle).flags = flags

    def touch(self, handle: int, stamp: int) -> None:
        self._entry(handle).stamp = stamp % _U32

    def _find_valid(self, tenant: int, block_id: bytes, now_s: int) -> int:
        handle = self.find(tenant, block_id)
        if handle >= 0 and 0 < self._entry(handle).expiry_s <= now_s:
            return -1
        return handle

    def find_many(self, tenant: int, block_ids: bytes, now_s: int) -> bytes:
        found = [self._find_valid(tenant, block_id, now_s) for block_id in _records(block_ids, 32)]
        return struct.pack(f"<{len(found)}i", *found)

    def exists_many(self, tenant: int, block_ids: bytes, now_s: int) -> bytes:
        found = [self._find_valid(tenant, block_id, now_s) for block_id in _records(block_ids, 32)]
        return struct.pack(f"<{len(found)}i", *(handle >= 0 for handle in found))

    def touch_many(self, handles: bytes, stamp: int) -> None:
        numbers = [int.from_bytes(handle, "little") for handle in _records(handles, 4)]
        for position, handle in enumerate(numbers):
            if handle < len(self._entries) and self._entries[handle] is not None:
                self.touch(handle, stamp + len(numbers) - 1 - position)

    def handles_of_slot(self, slot: int, first: int = 0, end: int = 0xFFFFFFFF) -> bytes:
        found = [
            handle for handle, entry in enumerate(self._entries)
            if entry is not None and entry.slot == slot and first <= handle < end
        ]
        return struct.pack(f"<{len(found)}I", *found)

    def blocks_of_tenant(self, tenant: int, first: int, end: int, now_s: int) -> bytes:
        return b"".join(
            entry.tag.to_bytes(16, "little") + struct.pack("<I", entry.depth)
            for entry in self._entries[first:end]
            if entry is not None
            and entry.tenant == tenant
            and not (entry.expiry_s and entry.expiry_s <= now_s)
        )

    def remove_sectors(self, first: int, end: int) -> int:
        found = [
            handle for handle, entry in enumerate(self._entries)
            if entry is not None and first <= entry.sector < end
        ]
        for handle in found:
            self.remove(handle)
        return len(found)
