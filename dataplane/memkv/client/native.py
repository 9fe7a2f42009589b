"""A native job on a group of lanes, as a `Request`."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from memkv._hotpath import Job, LaneGroup, Wave
from memkv.client.rdma_side import RdmaLane
from memkv.rdma.verbs import VerbsError, Window

log = logging.getLogger("memkv.client")


class NativeRequest:
    """One job and the lanes it goes on. Made for one use."""

    __slots__ = ("_group", "_job")

    def __init__(self, group: LaneGroup, job: Job) -> None:
        self._group = group
        self._job = job

    @property
    def status(self) -> int:
        return self._job.status

    @property
    def statuses(self) -> list[int]:
        return self._job.statuses

    @property
    def lengths(self) -> list[int]:
        return self._job.lengths

    @property
    def hints(self) -> bytes:
        return self._job.hints

    @property
    def reply(self) -> bytes:
        return self._job.reply

    def run(self) -> None:
        self._group.run(self._job)

    def submit(self, token: object | None, wave: Wave | None = None) -> None:
        self._job.token = token
        self._group.submit(self._job, token is not None, wave)

    def wait(self, deadline_ns: int) -> bool:
        return self._job.wait(deadline_ns)

    def quarantine(self, token: object) -> None:
        self._job.token = token  # wait() already asked the engine to report it

    def settled(self) -> None:
        """Nothing is left to do."""


class WindowRequest(NativeRequest):
    """A job whose memory a node reaches through windows, which end with it."""

    __slots__ = ("_strict", "_windows")

    def __init__(
        self, group: LaneGroup, job: Job, strict: RdmaLane, windows: Sequence[Window]
    ) -> None:
        super().__init__(group, job)
        self._strict = strict
        self._windows = windows

    def settled(self) -> None:
        try:
            self._strict.lane.close_windows(self._windows)
        except VerbsError as error:
            # The node was done with them. What it may still do by them ends with the lane, whose
            # thread tries until the windows are closed.
            log.warning("a memory window does not close, so its lane does: %s", error)
            self._strict.cut()
