"""What recovery remembers of deletes: exact while there is room, then safe."""

from hypothesis import given
from hypothesis import strategies as st

from memkv.store.dead import DeadKeys

TAGS = [b"a" * 16, b"b" * 16]


def test_a_key_is_dead_below_its_last_delete_and_alive_from_it_on() -> None:
    dead = DeadKeys(10)
    assert not dead
    assert dead.add(TAGS[0], b"key", 7)
    assert not dead.add(TAGS[0], b"key", 5)
    assert dead.kills(TAGS[0], b"key", 6)
    assert not dead.kills(TAGS[0], b"key", 7)
    assert not dead.kills(TAGS[1], b"key", 6)
    assert not dead.kills(TAGS[0], b"other", 6)


def test_one_who_deletes_without_end_pays_alone() -> None:
    dead = DeadKeys(10)
    dead.add(TAGS[1], b"mine", 3)
    for number in range(100):
        dead.add(TAGS[0], b"%d" % number, 10 + number)
    assert dead.tenants_cut >= 9
    assert dead.kills(TAGS[0], b"never deleted", 50)
    assert not dead.kills(TAGS[0], b"never deleted", 200)
    assert dead.kills(TAGS[1], b"mine", 2)
    assert not dead.kills(TAGS[1], b"other", 2)


@given(
    st.lists(st.tuples(st.sampled_from(TAGS), st.integers(0, 9), st.integers(0, 99)), max_size=60),
    st.integers(1, 12),
)
def test_nothing_deleted_is_ever_alive_and_memory_is_bounded(
    deletes: list[tuple[bytes, int, int]], keys_max: int
) -> None:
    dead = DeadKeys(keys_max)
    for tag, key, generation in deletes:
        dead.add(tag, bytes([key]), generation)
        assert sum(map(len, dead._keys.values())) <= keys_max
    for tag, key, generation in deletes:
        assert dead.kills(tag, bytes([key]), generation - 1)
