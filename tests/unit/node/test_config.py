"""Settings that cannot work are refused when they are made, with the reason."""

from typing import Any

import pytest

from memkv.errors import ConfigError
from memkv.node.config import WorkerConfig


def config(**changes: Any) -> WorkerConfig:
    return WorkerConfig("pool", b"u" * 16, 1, **changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"host": "localhost"}, "IP address"),
        ({"port": 65536}, "65535"),
        ({"lane_threads": 0}, "at least one"),
        ({"control_threads": 0}, "at least one"),
        ({"block_bytes_max": 0}, "at most"),
        ({"block_bytes_max": (16 << 20) + 1}, "at most"),
    ],
)
def test_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        config(**changes)


@pytest.mark.parametrize(("threads", "per_session"), [(1, 1), (2, 1), (8, 4), (9, 4)])
def test_half_of_the_threads_serve_one_session(threads: int, per_session: int) -> None:
    assert config(lane_threads=threads).threads_per_session_max == per_session
