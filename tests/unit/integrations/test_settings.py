"""Settings of a pool as engines' configurations have them."""

import pytest

from memkv.errors import CallerError
from memkv.integrations.settings import SETTING_NAMES, PoolSettings, refuse_unknown
from memkv.limits import BLOCK_BYTES_MAX, BLOCK_HEADER_BYTES


def test_what_is_left_out_has_defaults() -> None:
    assert PoolSettings.of({}, "here") == PoolSettings()
    assert PoolSettings.of({"endpoint": None, "others": 1}, "here") == PoolSettings()
    assert PoolSettings().part_bytes_max == BLOCK_BYTES_MAX - BLOCK_HEADER_BYTES


def test_what_is_said_is_taken() -> None:
    said = PoolSettings.of(
        {"endpoint": "memkv:7443", "deadline_ms": 500, "ttl_s": 60, "durability": "durable",
         "block_bytes_max": 1 << 20}, "here",
    )  # fmt: skip
    assert (said.endpoint, said.deadline_ms, said.part_bytes_max) == (
        "memkv:7443", 500, (1 << 20) - BLOCK_HEADER_BYTES,
    )  # fmt: skip
    assert (said.put_options.ttl_s, said.put_options.durability) == (60, "durable")


@pytest.mark.parametrize(
    ("name", "value"),
    [("deadline_ms", "500"), ("deadline_ms", 0), ("deadline_ms", True), ("endpoint", 7443),
     ("ttl_s", -1), ("durability", "maybe"), ("block_bytes_max", 100),
     ("block_bytes_max", BLOCK_BYTES_MAX + 1), ("load_deadline_ms", 0)],
)  # fmt: skip
def test_what_means_nothing_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(CallerError, match=f"^here: .*{name}"):
        PoolSettings.of({name: value}, "here")


def test_misspelt_names_are_refused() -> None:
    refuse_unknown({"endpoint": ""}, SETTING_NAMES, "here")
    with pytest.raises(CallerError, match=r"^here: unknown deadlin_ms; known: .*deadline_ms"):
        refuse_unknown({"deadlin_ms": 1}, SETTING_NAMES, "here")
