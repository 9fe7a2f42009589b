"""From keys to workers: ids, slots, owners, and who else to ask while a slot moves. Pure."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from memkv import _hotpath
from memkv.errors import CallerError
from memkv.limits import USER_KEY_BYTES_MAX
from memkv.shardmap.cache import Route

Key = str | bytes


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one operation, hashed: 32 bytes an id, 2 bytes a slot."""

    count: int
    ids: bytes
    slots: bytes

    def id_of(self, position: int) -> bytes:
        return self.ids[32 * position : 32 * position + 32]

    def ids_of(self, positions: Sequence[int]) -> bytes:
        if len(positions) == self.count:
            return self.ids
        return _hotpath.gather(self.ids, 32, struct.pack(f"<{len(positions)}I", *positions))

    def slot_of(self, position: int) -> int:
        return self.slots[2 * position] | self.slots[2 * position + 1] << 8


def hash_keys(keys: Sequence[Key], salt: bytes, slots: int) -> Keys:
    """Hash user keys. Raises CallerError naming the first key that cannot be one."""
    try:
        ids = _hotpath.block_ids(keys, salt)
    except (ValueError, TypeError) as error:
        raise key_error(error) from error
    return Keys(len(keys), ids, _hotpath.slots_of(ids, slots))


def key_error(error: Exception) -> CallerError:
    """Return what to raise when hashing refused a key."""
    return CallerError(f"{error}; a key is str or bytes of 1 to {USER_KEY_BYTES_MAX} bytes")


def by_owner(keys: Keys, route: Route) -> dict[int, list[int]]:
    """Return key positions by worker index, in the caller's order."""
    if keys.count == 1:
        slot = keys.slot_of(0)
        return {route.owner_index(slot): [0]}
    return {
        worker: list(struct.unpack(f"<{len(positions) // 4}I", positions))
        for worker, positions in _hotpath.group_by_owner(keys.slots, route.owners)
    }
