"""Block ids and slots: what a user key becomes before it leaves the client.

The canonical form is the key's length (u32, little-endian) followed by the key, so that no two keys
share one; the tenant's salt is the BLAKE2b key. The bytes are frozen: see tests/golden/keys.json.
"""

from collections.abc import Sequence

from memkv import _hotpath
from memkv.errors import CallerError
from memkv.limits import SLOTS_DEFAULT


def block_id(key: str | bytes, salt: bytes = b"") -> bytes:
    """Return the 32-byte id of one key. Raises as `block_ids` does."""
    return block_ids([key], salt)


def block_ids(keys: Sequence[str | bytes], salt: bytes = b"") -> bytes:
    """Return 32 bytes a key, in order.

    A str is its UTF-8 bytes; both kinds name the same block. Raises CallerError naming the index of
    the first key that is empty, over 512 bytes or not encodable, or for a salt over 64 bytes.
    """
    try:
        return _hotpath.block_ids(keys, salt)
    except ValueError as error:
        raise CallerError(str(error)) from None


def slot_of(block_id: bytes, slots: int = SLOTS_DEFAULT) -> int:
    """Return the slot of one 32-byte id: xxh3_64 of the id, modulo `slots`."""
    return int.from_bytes(_hotpath.slots_of(block_id, slots), "little")


def slots_of(block_ids: bytes, slots: int = SLOTS_DEFAULT) -> bytes:
    """Return a little-endian u16 slot for each 32-byte id."""
    return _hotpath.slots_of(block_ids, slots)
