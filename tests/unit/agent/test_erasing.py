"""Erasing under attack: never the wrong disk, never content that nobody approved, also after a
crash at every single sector."""

import random
from pathlib import Path

import pytest

from memkv.agent.content import Kind, judge
from memkv.agent.disks import BlockDevice
from memkv.agent.erasing import WIPE_JOURNAL_BYTES, Journal, erase, wipe
from memkv.agent.opened import DiskBusy, DiskChanged
from memkv.limits import GIB, MIB, SECTOR_BYTES
from memkv.store.foreign import PROBE_BYTES
from memkv.store.layout import Superblock, encode_superblock
from memkv.testing.node_disks import Crash, FakeDisks, FakeDrive

SIZE = 2 * GIB


@pytest.fixture
def disks() -> FakeDisks:
    return FakeDisks()


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "erasing")


def foreign(serial: str = "S1", seed: int = 1) -> FakeDrive:
    drive = FakeDrive(SIZE, serial)
    drive.head[:] = random.Random(seed).randbytes(PROBE_BYTES)
    drive.tail[:] = random.Random(seed + 1000).randbytes(PROBE_BYTES)
    return drive


def store(serial: str = "S1") -> FakeDrive:
    drive = FakeDrive(SIZE, serial)
    superblock = Superblock(b"d" * 16, b"w" * 16, 1, SIZE, 32 * MIB, 60)
    drive.write(0, bytes(encode_superblock(superblock)))
    return drive


def fingerprint(device: BlockDevice, drive: FakeDrive) -> str:
    return judge(device, bytes(drive.head), bytes(drive.tail)).fingerprint


def is_blank(drive: FakeDrive) -> bool:
    return not any(drive.head) and not any(drive.tail)


def test_approved_disk_is_erased(disks: FakeDisks, journal: Journal) -> None:
    drive = foreign()
    device = disks.plug("sda", drive)
    erase(device, fingerprint(device, drive), Kind.FOREIGN, disks, journal)
    assert is_blank(drive)


def test_content_that_changed_after_the_approval_is_kept(
    disks: FakeDisks, journal: Journal
) -> None:
    for offset in (0, PROBE_BYTES - 1, SIZE - PROBE_BYTES, SIZE - 1):
        drive = foreign()
        device = disks.plug("sda", drive)
        approved = fingerprint(device, drive)
        end, at = (drive.head, offset) if offset < PROBE_BYTES else (drive.tail, offset - SIZE)
        end[at] ^= 1
        with pytest.raises(DiskChanged, match="nothing was written"):
            erase(device, approved, Kind.FOREIGN, disks, journal)
        assert drive.writes == 0


def test_disk_swapped_under_the_same_name_is_kept(disks: FakeDisks, journal: Journal) -> None:
    """Seen by the kernel's sequence; and where a kernel has none, by serial number and content."""
    device = disks.plug("sda", foreign("S1"))
    approved = fingerprint(device, foreign("S1"))
    other = foreign("S2")
    disks.plug("sda", other)
    with pytest.raises(DiskChanged, match="another disk"):
        erase(device, approved, Kind.FOREIGN, disks, journal)
    now, _ = disks.drives["sda"]
    with pytest.raises(DiskChanged, match="nothing was written"):
        erase(now, approved, Kind.FOREIGN, disks, journal)
    assert other.writes == 0


def test_disk_in_use_is_kept(disks: FakeDisks, journal: Journal) -> None:
    drive = foreign()
    device = disks.plug("sda", drive)
    drive.held = True
    with pytest.raises(DiskBusy):
        erase(device, fingerprint(device, drive), Kind.FOREIGN, disks, journal)
    assert drive.writes == 0


def test_store_is_not_erased_as_foreign_content(disks: FakeDisks, journal: Journal) -> None:
    drive = store()
    device = disks.plug("sda", drive)
    with pytest.raises(DiskChanged):
        erase(device, fingerprint(device, drive), Kind.FOREIGN, disks, journal)
    assert drive.writes == 0


def test_vanished_and_broken_disks(disks: FakeDisks, journal: Journal) -> None:
    drive = foreign()
    device = disks.plug("sda", drive)
    approved = fingerprint(device, drive)
    drive.broken = True
    with pytest.raises(OSError):
        erase(device, approved, Kind.FOREIGN, disks, journal)
    disks.pull("sda")
    with pytest.raises(DiskChanged):
        erase(device, approved, Kind.FOREIGN, disks, journal)


def test_drive_that_keeps_no_writes_is_found_out(disks: FakeDisks, journal: Journal) -> None:
    drive = foreign()
    drive.keeps_writes = False
    device = disks.plug("sda", drive)
    with pytest.raises(OSError, match="does not keep"):
        erase(device, fingerprint(device, drive), Kind.FOREIGN, disks, journal)


@pytest.mark.parametrize("sectors", [0, 1, 2, 255, 256, 257, 300, 511])
def test_crash_at_any_sector_is_resumed_without_a_second_approval(
    disks: FakeDisks, journal: Journal, sectors: int
) -> None:
    drive = foreign()
    device = disks.plug("sda", drive)
    approved = fingerprint(device, drive)
    disks.crash_after_sectors = sectors
    with pytest.raises(Crash):
        erase(device, approved, Kind.FOREIGN, disks, journal)
    assert not is_blank(drive)
    disks.crash_after_sectors = None
    erase(device, approved, Kind.FOREIGN, disks, journal)
    assert is_blank(drive)


@pytest.mark.parametrize("sectors", [0, 1, 255, 256, 300, 511])
def test_what_somebody_wrote_after_a_crash_is_kept(
    disks: FakeDisks, journal: Journal, sectors: int
) -> None:
    drive = foreign()
    device = disks.plug("sda", drive)
    approved = fingerprint(device, drive)
    disks.crash_after_sectors = sectors
    with pytest.raises(Crash):
        erase(device, approved, Kind.FOREIGN, disks, journal)
    disks.crash_after_sectors = None
    mine = b"somebody's data"
    drive.write(3 * SECTOR_BYTES + 7, mine)
    before = drive.writes
    with pytest.raises(DiskChanged, match="nothing was written"):
        erase(device, approved, Kind.FOREIGN, disks, journal)
    assert drive.writes == before
    assert mine in drive.head


def test_journal_of_one_disk_opens_no_other(disks: FakeDisks, journal: Journal) -> None:
    """A second disk with the very bytes that a half-erased one has."""
    drive = foreign("S1")
    device = disks.plug("sda", drive)
    approved = fingerprint(device, drive)
    disks.crash_after_sectors = 100
    with pytest.raises(Crash):
        erase(device, approved, Kind.FOREIGN, disks, journal)
    disks.crash_after_sectors = None
    twin = FakeDrive(SIZE, "S2", bytearray(drive.head), bytearray(drive.tail))
    other = disks.plug("sdb", twin)
    with pytest.raises(DiskChanged):
        erase(other, approved, Kind.FOREIGN, disks, journal)
    assert twin.writes == 0


def test_damaged_journal_means_a_new_approval(
    disks: FakeDisks, journal: Journal, tmp_path: Path
) -> None:
    drive = foreign()
    device = disks.plug("sda", drive)
    approved = fingerprint(device, drive)
    disks.crash_after_sectors = 300
    with pytest.raises(Crash):
        erase(device, approved, Kind.FOREIGN, disks, journal)
    disks.crash_after_sectors = None
    (file,) = (tmp_path / "erasing").iterdir()
    for damage in ("", "{", "[]", '{"identity": 1}', file.read_text()[:-2000] + '"}'):
        file.write_text(damage)
        with pytest.raises(DiskChanged):
            erase(device, approved, Kind.FOREIGN, disks, journal)
    erase(device, fingerprint(device, drive), Kind.FOREIGN, disks, journal)
    assert is_blank(drive)


def test_wipe_goes_on_where_it_ended(disks: FakeDisks, journal: Journal) -> None:
    drive = store()
    device = disks.plug("sda", drive)
    asked = fingerprint(device, drive)
    steps = wipe(device, asked, disks, journal)
    first = [next(steps), next(steps), next(steps)]
    steps.close()
    assert is_blank(drive)  # nobody opens half a store
    rest = list(wipe(device, asked, disks, journal))
    assert rest[0] > first[-1]
    assert rest[-1] == SIZE


def test_a_crash_repeats_only_what_the_journal_had_not_heard(
    disks: FakeDisks, journal: Journal
) -> None:
    """Small pieces, so that calls wait for little; few flushes of the journal beside them."""
    drive = store()
    device = disks.plug("sda", drive)
    asked = fingerprint(device, drive)
    steps = wipe(device, asked, disks, journal)
    for done in steps:
        begun = journal.of(device)
        assert begun is not None
        assert done - begun.wiped_bytes < WIPE_JOURNAL_BYTES
        assert begun.wiped_bytes % WIPE_JOURNAL_BYTES == 0
    begun = journal.of(device)
    assert begun is not None
    assert begun.wiped_bytes == SIZE


def test_wipe_takes_only_the_store_that_was_named(disks: FakeDisks, journal: Journal) -> None:
    drive = store()
    device = disks.plug("sda", drive)
    asked = fingerprint(device, drive)
    drive.write(0, b"mkfs".ljust(SECTOR_BYTES, b"\1") * 2)
    with pytest.raises(DiskChanged):
        next(wipe(device, asked, disks, journal))
    assert drive.writes == 0
