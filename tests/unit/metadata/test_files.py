"""What is kept on disk survives whole or is refused with the fix."""

from dataclasses import replace
from pathlib import Path

import pytest

from memkv.errors import ConfigError
from memkv.metadata import files
from memkv.metadata.files import (
    PublisherLock,
    StateFile,
    load_map,
    read_state,
    save_map,
    write_durably,
)
from memkv.metadata.ownership import Tenure
from memkv.metadata.publisher import PublisherState
from memkv.metadata.state_codec import decode_state, encode_state
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
    file = StateFile(path)
    assert file.read() is None
    file.write(STATE)
    assert read_state(path) == STATE
    file.write(replace(STATE, epoch_times_s={8: 1}))
    file.release()
    again = StateFile(path)
    assert again.read() == replace(STATE, epoch_times_s={8: 1})
    again.release()


@pytest.mark.parametrize("change", ["other content", "removed", "appeared"])
def test_state_is_replaced_only_where_it_is_the_one_last_seen(tmp_path: Path, change: str) -> None:
    """Compare and swap: somebody got round the lock, and this publisher must end."""
    path = tmp_path / "state"
    file = StateFile(path)
    file.read()
    if change != "appeared":
        file.write(STATE)
    path.with_name("state.lock").unlink()
    intruder = StateFile(path)  # nothing holds it back any more
    intruder.read()
    if change == "removed":
        path.unlink()
    else:
        intruder.write(replace(STATE, epoch_times_s={8: 2}))
    with pytest.raises(ConfigError, match="changed by somebody else"):
        file.write(STATE if change == "removed" else replace(STATE, epoch_times_s={8: 3}))


def test_write_that_failed_after_it_replaced_the_file_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = StateFile(tmp_path / "state")
    file.read()

    def fails_late(path: Path, data: bytes) -> None:
        write_durably(path, data)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files, "write_durably", fails_late)
        with pytest.raises(OSError, match="No space"):
            file.write(STATE)
    file.write(STATE)
    assert read_state(tmp_path / "state") == STATE


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
    data = encode_state(STATE)
    write_durably(path, data)
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
