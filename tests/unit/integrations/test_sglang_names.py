"""Names of SGLang's pages: every field that changes bytes changes the key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from memkv.errors import CallerError
from memkv.integrations.hints import short_id
from memkv.integrations.settings import PoolSettings
from memkv.integrations.sglang_names import (
    Page,
    leading,
    page_hash,
    page_hints,
    page_namespace,
    restorable,
)


@dataclass
class Config:
    tp_rank: int = 0
    tp_size: int = 1
    pp_rank: int = 0
    pp_size: int = 1
    attn_cp_rank: int = 0
    attn_cp_size: int = 1
    dcp_rank: int = 0
    dcp_size: int = 1
    is_mla_model: bool = False
    model_name: str | None = "llama"


@dataclass
class Pool:
    page_size: int = 64
    layout: str = "page_first"
    dtype: object = "torch.bfloat16"
    layer_num: int = 32
    head_num: int = 8
    head_dim: int = 128
    start_layer: int = 0

    def get_page_buffer_meta(self, indices: object) -> tuple[Sequence[object], Sequence[object]]:
        raise NotImplementedError

    def get_dummy_flat_data_page(self) -> Page:
        raise NotImplementedError


class MLAPool(Pool):
    pass


@dataclass
class Said:
    config: Config = field(default_factory=Config)
    pool: Pool = field(default_factory=Pool)
    name: str = "kv"
    way: str = "zero-copy"
    revision: str = ""

    @property
    def digest(self) -> bytes:
        settings = PoolSettings(revision=self.revision)
        return page_namespace(settings, self.config, self.pool, self.name, self.way).digest


CHANGES: dict[str, Said] = {
    "model": Said(Config(model_name="qwen")),
    "revision": Said(revision="1"),
    "rank": Said(Config(tp_rank=1, tp_size=2)),
    "ranks": Said(Config(tp_size=2)),
    "stage": Said(Config(pp_size=2)),
    "context rank": Said(Config(attn_cp_size=2)),
    "dtype": Said(pool=Pool(dtype="torch.float8_e4m3fn")),
    "page size": Said(pool=Pool(page_size=32)),
    "layout": Said(pool=Pool(layout="page_first_direct")),
    "layers": Said(pool=Pool(layer_num=31)),
    "first layer": Said(pool=Pool(start_layer=1)),
    "heads": Said(pool=Pool(head_num=4)),
    "head size": Said(pool=Pool(head_dim=64)),
    "kind of pool": Said(pool=MLAPool()),
    "side pool": Said(name="mamba"),
    "way": Said(way="flat"),
}


def test_each_field_is_in_the_namespace() -> None:
    digests = {name: said.digest for name, said in CHANGES.items()}
    assert len({Said().digest, *digests.values()}) == len(CHANGES) + 1


def test_a_latent_cache_is_shared_by_ranks_and_the_rest_is_not() -> None:
    first = Config(tp_rank=0, tp_size=2, is_mla_model=True)
    second = replace(first, tp_rank=1)
    assert Said(first, MLAPool()).digest == Said(second, MLAPool()).digest
    for name, pool in (("mamba", Pool()), ("draft", Pool())):
        assert Said(first, pool, name).digest != Said(second, pool, name).digest
    assert Said(first, MLAPool(), "draft").digest == Said(second, MLAPool(), "draft").digest


def test_a_model_needs_a_name() -> None:
    with pytest.raises(CallerError, match="served-model-name"):
        _ = Said(Config(model_name=None)).digest


def test_hashes_and_texts_never_meet() -> None:
    assert page_hash("ab12") == b"h\xab\x12"
    assert page_hash("not hex") == b"tnot hex"
    assert page_hash("ab12") != page_hash("\xab\x12")


def test_hints_say_where_pages_stand() -> None:
    hints = page_hints(["cc", "dd"], ["aa", "bb"])
    assert [(hint.prefix_id, hint.depth) for hint in hints] == [
        (short_id(page_hash("aa")), 2), (short_id(page_hash("aa")), 3),
    ]  # fmt: skip
    assert page_hints(["aa"], None)[0].prefix_id == short_id(page_hash("aa"))
    assert page_hints([], None) == []


def test_what_a_side_pool_can_restore() -> None:
    assert restorable(4, [True, True, False, True], None) == [1, 2]
    assert restorable(4, [False, True, True, False], 2) == [3]
    assert restorable(3, [True, True, True], 2) == [1, 2, 3]
    assert restorable(0, [], 2) == []
    assert (leading([]), leading([True, False, True]), leading([True])) == (0, 1, 1)
