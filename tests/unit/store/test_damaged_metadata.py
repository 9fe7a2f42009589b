"""Flipped, torn, misdirected and unreadable metadata: nothing is lost beyond the segment concerned,
and what was deleted stays deleted."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from memkv import keys
from memkv.errors import ConfigError
from memkv.limits import KIB, MIB, SECTOR_BYTES
from memkv.status import Status
from memkv.store.api import Store
from memkv.store.layout import decode_segment_header, decode_trailer
from memkv.store.segments import State
from memkv.testing.store_bench import SEGMENT_BYTES, Bench

SECTORS = SEGMENT_BYTES // SECTOR_BYTES
NAMES = [f"fill-{number}" for number in range(20)]
Damage = Callable[[Bench, int], None]


def page(bench: Bench, sector: int) -> memoryview:
    return memoryview(bench.device.image)[sector * SECTOR_BYTES :][:SECTOR_BYTES]


def header_sector(segment: int) -> int:
    return MIB // SECTOR_BYTES + segment * SECTORS


def trailer_sector(segment: int) -> int:
    return header_sector(segment) + SECTORS - 1


def flip(bench: Bench, sector: int) -> None:
    page(bench, sector)[20] ^= 4


def tear(bench: Bench, sector: int) -> None:
    page(bench, sector)[64:] = b"\xaa" * (SECTOR_BYTES - 64)  # the list here is 320 bytes


def misdirect(bench: Bench, sector: int) -> None:
    """Another segment's header lands here: it is whole, but of another place."""
    other = next(s for s in sealed(bench) if header_sector(s) != sector)
    page(bench, sector)[:] = bytes(page(bench, header_sector(other)))


def make_unreadable(bench: Bench, sector: int) -> None:
    bench.device.unreadable.add(sector)


DAMAGES = [flip, tear, misdirect, make_unreadable]


def sealed(bench: Bench) -> list[int]:
    """Return the segments with a footer on flash, oldest first."""
    found = []
    for segment in range(16):
        trailer = decode_trailer(page(bench, trailer_sector(segment)))
        if trailer is not None and trailer.footer_sector:
            found.append((trailer.sequence, segment))
    return [segment for _, segment in sorted(found)]


def filled(bench: Bench) -> list[int]:
    """Fill and close cleanly; return the sealed segments."""
    bench.fill(len(NAMES))
    bench.store.close()
    return sealed(bench)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_header_of_a_full_segment_costs_nothing(bench: Bench, damage: Damage) -> None:
    damage(bench, header_sector(filled(bench)[1]))
    assert bench.open().recovery.blocks == len(NAMES)
    assert bench.hits(NAMES) == len(NAMES)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_trailer_costs_a_scan(bench: Bench, damage: Damage) -> None:
    segments = filled(bench)
    damage(bench, trailer_sector(segments[1]))
    report = bench.open().recovery
    assert report.segments["load"] == len(segments) - 1
    assert report.blocks == len(NAMES)
    assert bench.hits(NAMES) == len(NAMES)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("with_header", [False, True], ids=["list", "list and header"])
def test_a_damaged_list_costs_a_scan(bench: Bench, damage: Damage, with_header: bool) -> None:
    segments = filled(bench)
    segment = segments[1]
    trailer = decode_trailer(page(bench, trailer_sector(segment)))
    assert trailer is not None
    damage(bench, header_sector(segment) + trailer.footer_sector)
    if with_header:
        damage(bench, header_sector(segment))
    report = bench.open().recovery
    assert report.segments["load"] == len(segments) - 1
    assert bench.hits(NAMES) == len(NAMES)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_header_of_an_open_segment_costs_nothing(bench: Bench, damage: Damage) -> None:
    bench.fill(len(NAMES))
    last = bench.store._core.log.open[0]
    assert last is not None
    damage(bench, header_sector(last.number))
    bench.power_loss()
    assert bench.hits(NAMES) == len(NAMES)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_segment_that_lost_both_ends_takes_no_other_with_it(bench: Bench, damage: Damage) -> None:
    segments = filled(bench)
    damage(bench, header_sector(segments[1]))
    damage(bench, trailer_sector(segments[1]))
    bench.open()
    lost = len(NAMES) - bench.hits(NAMES)
    assert 1 <= lost <= SECTORS // 3
    for number in range(60):  # the store goes on, over the place of the damage too
        assert bench.put(f"later-{number}") is Status.OK
    assert bench.get("later-59") is Status.OK


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("where", [header_sector, trailer_sector])
def test_a_tombstone_outlives_the_damage_of_an_end(
    bench: Bench, damage: Damage, where: Callable[[int], int]
) -> None:
    """The tombstone lies in a later segment than its block, and that segment is damaged."""
    bench.put("a")
    bench.fill(12)
    bench.delete("a")
    bench.store.close()
    damage(bench, where(sealed(bench)[-1]))
    for _ in range(3):
        bench.open()
        assert bench.get("a") is Status.MISS
        bench.store.close()


def test_a_segment_unread_for_one_life_brings_nothing_back(bench: Bench) -> None:
    """It holds a block and cannot be read; the block is deleted; then it can be read again."""
    bench.fill(8)
    bench.put("a")
    newest = bench.store._core.log.open[0]
    assert newest is not None
    ends = {header_sector(newest.number), trailer_sector(newest.number)}
    bench.device.unreadable = ends
    bench.power_loss()
    assert bench.store.recovery.segments["unreadable"] == 1
    assert bench.get("a") is Status.MISS
    bench.delete("a")
    bench.fill(30, "more")
    bench.device.unreadable = set()
    for _ in range(3):
        bench.power_loss()
        assert bench.get("a") is Status.MISS


def test_a_segment_whose_records_cannot_be_read_keeps_tombstones_of_everybody(
    bench: Bench,
) -> None:
    """What it holds may show again in a later life, so deletes of it must not be forgotten."""
    bench.put("a")
    newest = bench.store._core.log.open[0]
    assert newest is not None
    first, last = header_sector(newest.number), trailer_sector(newest.number)
    bench.device.unreadable = set(range(first + 1, last))
    bench.power_loss()
    assert bench.get("a") is Status.MISS
    table = bench.store._core.table
    younger = max(table.all, key=lambda segment: segment.sequence)
    younger.sequence += 1
    assert table.older_holds(younger, tenant=12345)


def test_sequences_of_a_life_are_larger_than_all_before(bench: Bench) -> None:
    bench.fill(30)
    before = max(segment.sequence for segment in bench.store._core.table.all)
    bench.power_loss()
    assert bench.store._core.table.sequence_last >= before
    bench.fill(1, "next")
    segment = bench.store._core.log.open[0]
    assert segment is not None
    assert segment.sequence > before
    assert segment.sequence >> 32 == bench.store.superblock.incarnation


@pytest.mark.parametrize("damage", [flip, tear, make_unreadable])
@pytest.mark.parametrize("copy", [0, 1])
def test_one_damaged_superblock_costs_nothing(bench: Bench, damage: Damage, copy: int) -> None:
    filled(bench)
    damage(bench, copy)
    assert bench.open().recovery.blocks == len(NAMES)


def test_a_superblock_that_holds_a_record_costs_nothing(bench: Bench) -> None:
    filled(bench)
    page(bench, 0)[:] = bytes(page(bench, header_sector(0) + 1))
    assert bench.open().recovery.blocks == len(NAMES)


def test_a_superblock_that_can_be_read_at_the_second_attempt_is_ours(bench: Bench) -> None:
    filled(bench)
    bench.device.operations = 0
    bench.device.faults = replace(bench.device.faults, fail_at=1)
    page(bench, 1)[0] ^= 1
    assert bench.open().recovery.blocks == len(NAMES)


def test_superblocks_that_cannot_be_read_are_refused_with_a_cause(bench: Bench) -> None:
    filled(bench)
    bench.device.unreadable = {0, 1}
    with pytest.raises(ConfigError, match="check the drive"):
        bench.open()


def test_a_grown_device_keeps_its_geometry(bench: Bench) -> None:
    filled(bench)
    geometry = bench.store.superblock
    bench.device.image += bytes(256 * KIB)
    store: Store = bench.open()
    assert store.recovery.blocks == len(NAMES)
    assert store.superblock == geometry._replace(incarnation=2)


def test_an_erase_leaves_no_trailer_of_the_life_before(bench: Bench) -> None:
    bench.fill(120)  # every segment is used again
    for segment in bench.store._core.table.all:
        header = decode_segment_header(page(bench, header_sector(segment.number)))
        trailer = decode_trailer(page(bench, trailer_sector(segment.number)))
        assert header is not None
        assert trailer is not None
        assert (header.sequence, header.nonce) == (trailer.sequence, trailer.nonce)


def test_erasing_is_cut_short_anywhere_without_bringing_anything_back(bench: Bench) -> None:
    bench.put("a")
    bench.delete("a")
    bench.put("kept")
    ids = keys.block_id("kept")
    for crash_at in range(1, 400, 7):
        bench.store.pin(bench.tenant, ids, 60)
        bench.device.operations = 0
        bench.device.faults = replace(bench.device.faults, crash_at=crash_at)
        crash_while_filling(bench, crash_at)
        assert bench.get("a") is Status.MISS
        assert bench.get("kept") is Status.OK


def test_what_an_old_trailer_may_bring_back_keeps_its_tombstones(bench: Bench) -> None:
    """Erased but for its trailer. Erased again, with a torn header, it would be its old life."""
    bench.put("a")
    core = bench.store._core
    owner = core.tenants.get(bench.tenant.tag).number
    place = core.index.location(core.index.find(owner, keys.block_id("a")))[0]
    segment = core.table.at_sector(place)
    bench.delete("a")
    bench.fill(20)
    trailer = bytes(page(bench, trailer_sector(segment.number)))
    assert decode_trailer(memoryview(trailer)) is not None
    while segment.state is not State.FREE:
        bench.fill(1, f"more-{core.counters.puts}")
    page(bench, trailer_sector(segment.number))[:] = trailer
    bench.power_loss()
    table = bench.store._core.table
    assert table.all[segment.number].state is State.BLANK
    oldest = table.oldest(0)
    assert oldest is not None
    assert table.older_holds(oldest, owner)


def crash_while_filling(bench: Bench, number: int) -> None:
    try:
        for count in range(200):
            bench.put(f"{number}-{count}")
    except Exception as error:
        if type(error).__name__ != "PowerLoss":
            raise
    bench.device.faults = replace(bench.device.faults, crash_at=0)
    bench.power_loss()
