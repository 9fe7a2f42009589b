"""What a worker's drive says of its own health, asked once a minute in a thread of its own.

Asking is an admin command to the controller, which takes CAP_SYS_ADMIN and may hang with the drive:
serving never waits for it. A node in Kubernetes has no such right; there the agent asks.
"""

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from memkv.clock import Clock
from memkv.io.block_device import BlockDevice
from memkv.io.nvme_health import Health, read_health
from memkv.limits import DRIVE_HEALTH_INTERVAL_MS
from memkv.node.messages import Sample
from memkv.node.metrics import counter, gauge

log = logging.getLogger("memkv.node")

STALE_AFTER_NS = 3 * DRIVE_HEALTH_INTERVAL_MS * 1_000_000
_CAUSES = {
    errno.EACCES: "asking it needs CAP_SYS_ADMIN",
    errno.EPERM: "asking it needs CAP_SYS_ADMIN",
    errno.ENOTTY: "it is no NVMe drive",
    errno.EINVAL: "it is no NVMe drive",
    errno.EOPNOTSUPP: "it is no NVMe drive",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What the drive said last, and when."""

    at_ns: int
    health: Health | None
    cause: str = ""
    """Why it is unknown."""


class DriveHealth:
    """Keeps asking one drive. Thread-safe."""

    def __init__(
        self, path: str, block: BlockDevice, clock: Clock,
        read: Callable[[int], Health] = read_health,
    ) -> None:  # fmt: skip
        """`block`: the device that `path` led to when the worker opened it."""
        self._path = path
        self._block = block
        self._clock = clock
        self._read = read
        self._answer: Answer | None = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """Begin. The thread is not waited for at the end: it may hang with the drive."""
        threading.Thread(target=self._run, name="memkv-health", daemon=True).start()

    def stop(self) -> None:
        """Ask no more."""
        self._stopping.set()

    def ask(self) -> Answer:
        """Ask once."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                if BlockDevice.of(os.fstat(fd)) != self._block:
                    return self._unknown("another drive has its name now")
                return Answer(self._clock.monotonic_ns(), self._read(fd))
            finally:
                os.close(fd)
        except OSError as error:
            return self._unknown(_CAUSES.get(error.errno or 0, error.strerror or str(error)))

    def look(self) -> None:
        """Ask once, keep the answer, and log what is new in it."""
        before, self._answer = self._answer, self.ask()
        self._tell(before, self._answer)

    def samples(self) -> Iterator[Sample]:
        """Yield the metrics."""
        answer = self._answer
        now_ns = self._clock.monotonic_ns()
        is_fresh = answer is not None and now_ns - answer.at_ns <= STALE_AFTER_NS
        health = answer.health if answer is not None and is_fresh else None
        return health_samples(os.path.basename(self._path), health)

    def _unknown(self, cause: str) -> Answer:
        return Answer(self._clock.monotonic_ns(), None, cause)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.look()
            self._stopping.wait(DRIVE_HEALTH_INTERVAL_MS / 1000)

    def _tell(self, before: Answer | None, now: Answer) -> None:
        told = (before.cause, _warning(before)) if before is not None else ("", "")
        if now.cause and now.cause != told[0]:
            log.info("health of drive %s is unknown: %s", self._path, now.cause)
        if _warning(now) and _warning(now) != told[1]:
            log.warning("drive %s warns: %s", self._path, _warning(now))


def _warning(answer: Answer) -> str:
    return answer.health.warning if answer.health is not None else ""


def health_samples(drive: str, health: Health | None) -> Iterator[Sample]:
    """Yield what is said of a drive; figures only where they are known."""
    known = int(health is not None)
    text = "1 while the drive says how it is: NVMe, and a node with CAP_SYS_ADMIN"
    yield gauge("memkv_drive_health_known", text, known, drive=drive)
    if health is None:
        return
    text = "Used share of the drive's rated life"
    yield gauge("memkv_drive_wear_ratio", text, health.wear_percent / 100, drive=drive)
    text = "Errors of the medium, since the drive was made"
    yield counter("memkv_drive_media_errors", text, health.media_errors, drive=drive)
    text = "1 while the drive itself warns; the log says of what"
    yield gauge("memkv_drive_warning", text, int(bool(health.warning)), drive=drive)
