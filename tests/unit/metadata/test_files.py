"""What is kept on disk survives whole or is refused with the fix."""

from pathlib import Path

import pytest

from memkv.errors import ConfigError
from memkv.metadata.files import (
    PublisherLock,
    decode_state,
    encode_state,
    load_map,
    read_state,
    save_map,
    write_durably,
    write_state,
)
from memkv.metadata.ownership import Tenure
from memkv.metadata.publisher import PublisherState
from memkv.shardmap import MapVersion, Move, ShardMap, Worker, encode_map, pack_owners

WORKERS = tuple(Worker(bytes([n]) * 16, n, f"n{n}", "127.0.0.1", 7070 + n) for n in (1, 2))
MAP = ShardMap(
    MapVersion(b"L" * 16, 3, 9), 4, WORKERS, pack_owners([0, 1, 0, 1]), {0: Move((1,), 8)}
)
STATE = PublisherState(
    MAP, {0: (Tenure(b"\x02" * 16, True), Tenure(b"\x09" * 16, False))}, {8: 1_700_000_000}
)


def test_state_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state"
    assert read_state(path) is None
    write_state(path, STATE)
    read = read_state(path)
    assert read == STATE


def test_every_cut_or_flipped_state_is_refused() -> None:
    data = encode_state(STATE)
    damaged = [data[:cut] for cut in range(len(data) - 1)]
    damaged += [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in range(len(data) - 1)]
    for piece in damaged:
        with pytest.raises(ConfigError):
            decode_state(piece)


def test_damaged_state_file_names_the_ways_out(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"{}\n")
    with pytest.raises(ConfigError, match="new lineage"):
        read_state(path)


def test_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    """The new content lies beside the old one until it is whole."""
    path = tmp_path / "state"
    write_state(path, STATE)
    data = encode_state(STATE)
    for cut in range(0, len(data), 50):
        path.with_name("state.new").write_bytes(data[:cut])
        assert read_state(path) == STATE
    write_durably(path, b"other")
    assert path.read_bytes() == b"other"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state"]


def test_second_publisher_is_refused(tmp_path: Path) -> None:
    first = PublisherLock(tmp_path / "state")
    with pytest.raises(ConfigError, match="--follow"):
        PublisherLock(tmp_path / "state")
    first.release()
    PublisherLock(tmp_path / "state").release()


def test_kept_map_round_trips_and_damage_is_no_map(tmp_path: Path) -> None:
    path = tmp_path / "map"
    assert load_map(path) is None
    save_map(path, MAP)
    assert load_map(path) == MAP
    path.write_bytes(encode_map(MAP)[:-3])
    assert load_map(path) is None
    assert load_map(tmp_path) is None
