"""Hints for puts, made from what engines have: the chain of a prompt's keys."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from memkv.client.options import HINT_ID_BYTES, BlockHint

NO_ID = bytes(HINT_ID_BYTES)


def short_id(name: bytes) -> bytes:
    """Return 8 bytes for a session, a user, a prompt, or whatever a name stands for; zeros, which
    mean none, for an empty one."""
    return hashlib.blake2b(name, digest_size=HINT_ID_BYTES).digest() if name else NO_ID


def hints_of(
    chain: Sequence[bytes], *, first: int = 0, session: bytes = b""
) -> list[BlockHint]:
    """Return a hint for each key of `chain` from number `first` on.

    `chain`: keys of one prompt, its head first. Prompts with the same head have the same
    `prefix_id`, so that a node sees that their blocks are used together; `depth` is the place in
    the chain, so that tails leave before heads. `session`: any name of the conversation.
    """
    if not chain:
        return []
    prefix_id, session_id = short_id(chain[0]), short_id(session)
    return [BlockHint(prefix_id, depth, session_id) for depth in range(first, len(chain))]
