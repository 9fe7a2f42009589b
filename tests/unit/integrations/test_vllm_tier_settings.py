"""What a user may say of the tier, and what routers may say of requests."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from memkv.client.options import BlockHint
from memkv.errors import CallerError
from memkv.integrations.hints import short_id
from memkv.integrations.vllm_tier.hints import PREFETCH_CHUNKS_MAX, block_hint, wanted_chunks
from memkv.integrations.vllm_tier.settings import TierSettings


def test_settings_of_the_pool_and_of_the_tier_are_read() -> None:
    settings = TierSettings.of({
        "endpoint": "memkv:7443", "pool": "default/large", "deadline_ms": 500, "locality": "local",
        "store_share": 1, "lookup_deadline_ms": 100, "enable_kv_events": True, "model": "llama",
    })
    assert (settings.pool.endpoint, settings.pool.pool) == ("memkv:7443", "default/large")
    assert (settings.locality, settings.store_share, settings.model) == ("LOCAL", 1, "llama")
    assert settings.enable_kv_events
    assert TierSettings.of({}) == TierSettings.of({"model": None, "endpoint": None})


@pytest.mark.parametrize(("values", "text"), [
    ({"endpont": "memkv:7443"}, "unknown endpont; known: .*endpoint"),
    ({"lookup_deadline_ms": 0}, "positive"),
    ({"lookup_deadline_ms": "250"}, "lookup_deadline_ms must be int"),
    ({"lookup_deadline_ms": True}, "lookup_deadline_ms must be int"),
    ({"enable_kv_events": 1}, "enable_kv_events must be bool"),
    ({"store_share": 0.0}, "part of the host cache"),
    ({"locality": "NEAR"}, "LOCAL"),
    ({"deadline_ms": 0}, "deadline_ms must be positive"),
])
def test_what_means_nothing_is_refused(values: dict[str, Any], text: str) -> None:
    where = "secondary_tiers: MemKVSecondaryTier: "
    with pytest.raises(CallerError, match=f"{where}.*{text}") as found:
        TierSettings.of(values)
    assert str(found.value).count("secondary_tiers") == 1


@dataclass
class Action:
    payload: dict[str, object]
    action_type: str = "kv.prefetch"
    action_version: str = "1.0"
    others: list[str] = field(default_factory=list)


def test_prefetch_names_chunks_of_a_group() -> None:
    assert wanted_chunks([
        Action({"block_hashes": ["0aff", "01"], "group": 2}), Action({"block_hashes": ["02"]}),
    ]) == [b"\x0a\xff\0\0\0\2", b"\1\0\0\0\2", b"\2\0\0\0\0"]


@pytest.mark.parametrize("action", [
    Action({"block_hashes": ["00"]}, action_type="kv.fetch"),
    Action({"block_hashes": ["00"]}, action_version="2.0"),
    Action({}), Action({"block_hashes": "00"}), Action({"block_hashes": [1, None, "zz"]}),
    Action({"block_hashes": ["00"], "group": -1}), Action({"block_hashes": ["00"], "group": "0"}),
], ids=repr)
def test_what_is_no_prefetch_is_skipped(action: Action) -> None:
    assert wanted_chunks([action]) == []


def test_a_request_prefetches_no_more_than_a_limit() -> None:
    long = Action({"block_hashes": ["00"] * PREFETCH_CHUNKS_MAX})
    assert len(wanted_chunks([long, long])) == PREFETCH_CHUNKS_MAX


def test_a_hint_says_where_a_chunk_stands() -> None:
    assert block_hint(b"head", 768, 256) == BlockHint(short_id(b"head"), 2)
    assert block_hint(b"", None, 256) == BlockHint()
    assert block_hint(b"head", 100, 256).depth == 0
