"""What outlives a worker's process."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memkv.node.moves import memory as module
from memkv.node.moves.memory import (
    MoveMemory,
    decode_memory,
    encode_memory,
    load_memory,
    save_memory,
)

LINEAGE = b"L" * 16
SLOTS, NUMBERS = st.integers(0, 65535), st.integers(0, 2**63)
PAIRS = st.tuples(NUMBERS, NUMBERS)
BY_SLOT = st.dictionaries(SLOTS, NUMBERS, max_size=30)


@given(
    st.builds(
        MoveMemory, st.binary(min_size=16, max_size=16), NUMBERS, BY_SLOT, BY_SLOT,
        st.dictionaries(st.binary(min_size=16, max_size=16), PAIRS, max_size=5),
        st.lists(PAIRS, max_size=5).map(tuple), st.dictionaries(SLOTS, PAIRS, max_size=10),
    )
)  # fmt: skip
def test_round_trip(memory: MoveMemory) -> None:
    assert decode_memory(encode_memory(memory)) == memory


def test_neighbours_with_one_number_take_no_room() -> None:
    many = MoveMemory(LINEAGE, 7, heard=dict.fromkeys(range(65536), 7))
    assert len(encode_memory(many)) < 300


def test_file_is_believed_only_when_whole(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "slots"
    assert load_memory(path) is None
    memory = MoveMemory(LINEAGE, 7, heard={1: 7}, opened={1: (6, 99)})
    save_memory(path, memory)
    assert load_memory(path) == memory
    whole = path.read_bytes()
    for damaged in (b"", whole[:-20], whole.replace(b'"epoch":7', b'"epoch":8'), b"{}\n"):
        path.write_bytes(damaged)
        assert load_memory(path) is None


@pytest.mark.parametrize("cut", ["format", "heard", "history"])
def test_document_of_another_kind_is_refused(cut: str) -> None:
    line, _ = encode_memory(MoveMemory(LINEAGE)).split(b"\n", 1)
    other = line.replace(cut.encode(), b"x" + cut.encode())
    data = other + b"\n" + sha256(other).hexdigest().encode()
    with pytest.raises(ValueError, match=r"format|memory"):
        decode_memory(data)


def test_generation_at_an_epoch_is_from_before_any_newer_map_was_served() -> None:
    memory = MoveMemory(LINEAGE)
    for epoch, generation in ((5, 100), (6, 110), (6, 999), (9, 150)):
        memory = memory.serving(epoch, generation)
    assert [memory.generation_at(epoch) for epoch in (0, 4, 5, 6, 8, 9, 50)] == [
        0, 0, 100, 110, 110, 150, 150,
    ]  # fmt: skip


def test_history_is_bounded_and_what_fell_out_counts_as_unknown() -> None:
    memory = MoveMemory(LINEAGE)
    for epoch in range(1, module.HISTORY_MAX + 11):
        memory = memory.serving(epoch, 10 * epoch)
    assert len(memory.history) == module.HISTORY_MAX
    assert memory.generation_at(10) == 0
    assert memory.generation_at(11) == 110


def test_emptied_slots_hold_nothing_and_settled_ones_are_known() -> None:
    memory = MoveMemory(LINEAGE, 4, heard={1: 4, 2: 4})
    memory = memory.emptied({1: 77}).settled([3], 5, {3: (5, 80)})
    assert memory.heard == {2: 4, 3: 5}
    assert memory.floors == {1: 77}
    assert memory.moving({3: 5}).opened == {3: (5, 80)}
    assert memory.moving({3: 6}).opened == {}


def test_in_another_lineage_only_what_was_up_to_date_is_still_held() -> None:
    memory = MoveMemory(
        LINEAGE, 9, {1: 9, 2: 8}, {5: 50}, {b"t" * 16: (3, 60)}, ((9, 100),), {1: (9, 90)}
    )
    assert memory.in_lineage(LINEAGE) is memory
    other = memory.in_lineage(b"N" * 16)
    assert other == MoveMemory(b"N" * 16, 0, {1: 0}, {5: 50}, {b"t" * 16: (0, 60)})
    assert replace(other, lineage=LINEAGE) != memory
