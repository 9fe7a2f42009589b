"""Hints for puts, made from what engines have: the chain of a prompt's keys."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

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


def wishes_in(parameters: object) -> Mapping[str, object]:
    """Return what a user of vLLM said of a request under "memkv" in its `kv_transfer_params`:
    `load` and `store`, each False where it must not be, and `session`, any name of the
    conversation. Anything else says nothing."""
    wishes = parameters.get("memkv") if isinstance(parameters, dict) else None
    return wishes if isinstance(wishes, dict) else {}


def session_id_of(wishes: Mapping[str, object]) -> bytes:
    """Return the `session_id` of a request's hints; NO_ID without a name."""
    name = wishes.get("session")
    return short_id(name.encode(errors="surrogatepass")) if isinstance(name, str) else NO_ID
