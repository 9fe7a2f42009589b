"""What a request says about itself: which chunks a router wants brought near, and where in its
prompt a chunk stands.

vLLM carries a router's hints to its tiers as they come (`ReqContext.kv_hints`): actions with a
type, a version and a payload of the action's own. MemKV does one of them and lets others pass:

    {"action_type": "kv.prefetch", "action_version": "1.0",
     "payload": {"block_hashes": ["<hex>", ...], "group": 0}}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from memkv.client.options import BlockHint
from memkv.integrations.hints import NO_ID, short_id
from memkv.integrations.vllm_tier.naming import GROUP_BYTES

PREFETCH = "kv.prefetch"
MAJOR_VERSION = "1"
PREFETCH_CHUNKS_MAX = 1024  # of one request: 4 GiB of chunks of 4 MiB, more than DRAM has to spare


class Action(Protocol):
    """One action of vLLM's `KvHintsEnvelope`."""

    @property
    def action_type(self) -> str: ...
    @property
    def action_version(self) -> str: ...
    @property
    def payload(self) -> Mapping[str, object]: ...


def wanted_chunks(actions: Iterable[Action]) -> list[bytes]:
    """Return vLLM's names of the chunks to prefetch. What is malformed is skipped: hints come from
    outside, and a wrong one costs nothing but itself."""
    chunks: list[bytes] = []
    for action in actions:
        if action.action_type != PREFETCH or _major(action.action_version) != MAJOR_VERSION:
            continue
        hashes = action.payload.get("block_hashes")
        group = action.payload.get("group", 0)
        if not isinstance(hashes, list) or not isinstance(group, int) or not 0 <= group < 1 << 32:
            continue
        for block_hash in hashes[: PREFETCH_CHUNKS_MAX - len(chunks)]:
            try:
                chunks.append(bytes.fromhex(block_hash) + group.to_bytes(GROUP_BYTES, "big"))
            except (TypeError, ValueError):
                continue
    return chunks


def block_hint(
    head: bytes, end_token: int | None, chunk_tokens: int, session_id: bytes = NO_ID
) -> BlockHint:
    """Return a put's hint. `head`: a name that requests with the same beginning share; `end_token`:
    where the chunk ends in its prompt, if the engine says it."""
    depth = 0 if end_token is None else max(0, end_token // chunk_tokens - 1)
    return BlockHint(short_id(head), depth, session_id)


def _major(version: str) -> str:
    return version.partition(".")[0]
