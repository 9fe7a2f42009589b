"""What a node says of its drives' health: figures while they are known, and never a wait."""

import errno
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from memkv.io.block_device import BlockDevice
from memkv.io.nvme_health import Health, read_health
from memkv.limits import DRIVE_HEALTH_INTERVAL_MS
from memkv.node.drive_health import DriveHealth
from memkv.testing.clock import ManualClock
from memkv.testing.loop_device import NoLoopDevices, loop_device

HERE = BlockDevice((259, 7))
WORN = Health(93, 4, "read-only")


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A path that opens as a block device."""
    path = tmp_path / "nvme-Maker_S3R1AL"
    path.touch()
    real = os.fstat

    def as_block(fd: int) -> os.stat_result:
        found = list(real(fd))
        found[stat.ST_MODE] = stat.S_IFBLK | 0o600
        return os.stat_result(found, {"st_rdev": os.makedev(259, 7)})

    monkeypatch.setattr(os, "fstat", as_block)
    return str(path)


def health_of(drive: str, read: Callable[[int], Health], clock: ManualClock) -> DriveHealth:
    return DriveHealth(drive, HERE, clock, read)


def figures(health: DriveHealth) -> dict[str, float]:
    samples = list(health.samples())
    assert {sample.labels["drive"] for sample in samples} == {"nvme-Maker_S3R1AL"}
    return {sample.name.removeprefix("memkv_drive_"): sample.value for sample in samples}


def test_figures_of_a_drive_and_its_warning_once(
    drive: str, caplog: pytest.LogCaptureFixture
) -> None:
    health = health_of(drive, lambda fd: WORN, ManualClock())
    assert figures(health) == {"health_known": 0}, "not asked yet"
    with caplog.at_level(logging.INFO, "memkv.node"):
        health.look()
        health.look()
    assert figures(health) == {
        "health_known": 1, "wear_ratio": 0.93, "media_errors": 4, "warning": 1,
    }  # fmt: skip
    assert caplog.text.count("warns: read-only") == 1


def test_figures_that_grew_old_are_not_told(drive: str) -> None:
    """The thread that asks hangs with its drive; whoever is scraped does not."""
    clock = ManualClock()
    health = health_of(drive, lambda fd: WORN, clock)
    health.look()
    clock.advance_ms(3 * DRIVE_HEALTH_INTERVAL_MS)
    assert figures(health)["health_known"] == 1
    clock.advance_ms(1)
    assert figures(health) == {"health_known": 0}


@pytest.mark.parametrize(
    ("error", "cause"),
    [(errno.EACCES, "needs CAP_SYS_ADMIN"), (errno.ENOTTY, "it is no NVMe drive"),
     (errno.EIO, "the drive refuses")],
)  # fmt: skip
def test_a_drive_that_cannot_be_asked_is_unknown_and_said_once(
    drive: str, error: int, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(fd: int) -> Health:
        raise OSError(error, "the drive refuses to tell its health")

    health = health_of(drive, refuse, ManualClock())
    with caplog.at_level(logging.INFO, "memkv.node"):
        health.look()
        health.look()
    assert figures(health) == {"health_known": 0}
    assert caplog.text.count(cause) == 1


def test_another_drive_under_the_same_name_is_not_taken_for_it(drive: str) -> None:
    health = DriveHealth(drive, BlockDevice((259, 8)), ManualClock(), lambda fd: WORN)
    assert health.ask().cause == "another drive has its name now"
    assert DriveHealth(f"{drive}.gone", HERE, ManualClock()).ask().health is None


def test_a_real_device_that_is_no_nvme_drive(tmp_path: Path) -> None:
    try:
        with loop_device(tmp_path / "disk", 1 << 20) as path:
            block = BlockDevice.of(os.stat(path))
            assert block is not None
            answer = DriveHealth(path, block, ManualClock(), read_health).ask()
    except NoLoopDevices as error:
        pytest.skip(f"no block device to try: {error}")
    assert answer.health is None
    assert answer.cause == "it is no NVMe drive"
