"""Who leads: a Lease taken and renewed by compare-and-swap, timed by a monotonic clock only.

Another holder's time counts from when this process saw the Lease change last, so clocks of two
machines are never compared. The leader gives up before anyone may take over: its work is cancelled
when the Lease could not be renewed for `renew_within_ms`, which is shorter than the Lease. Even so
two may believe for a moment that they lead; what they publish is compared and swapped too, and
carries the number of transitions as its term.
"""

from dataclasses import dataclass, replace
from enum import Enum

from memkv.metadata.kubernetes.json_values import JsonObject, Manifest, Reader
from memkv_operator.api.names import LEASES


@dataclass(frozen=True, slots=True)
class LeaseConfig:
    """Which Lease, and its times."""

    namespace: str
    name: str
    identity: str
    duration_ms: int = 15_000
    renew_within_ms: int = 10_000
    """A leader that could not renew for so long stops."""
    retry_ms: int = 2_000

    def __post_init__(self) -> None:
        assert self.retry_ms < self.renew_within_ms < self.duration_ms


class Step(Enum):
    """What to do about the Lease now."""

    CREATE = "create"
    TAKE = "take"
    RENEW = "renew"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class LeaseView:
    """The Lease as it was read."""

    holder: str
    transitions: int
    version: str
    """resourceVersion: what to swap against."""
    duration_ms: int


def read_lease(manifest: JsonObject) -> LeaseView:
    """Return what a Lease says."""
    reader = Reader(manifest)
    spec = reader.object("spec")
    return LeaseView(
        spec.text("holderIdentity"),
        spec.integer("leaseTransitions"),
        reader.object("metadata").text("resourceVersion"),
        spec.integer("leaseDurationSeconds", 15) * 1000,
    )


@dataclass(frozen=True, slots=True)
class Election:
    """What one candidate knows. Pure: replaced by each observation."""

    config: LeaseConfig
    view: LeaseView | None = None
    seen_ms: int = 0
    """When this view was new, or our renewal was sent."""

    def observed(self, view: LeaseView | None, now_ms: int) -> "Election":
        """Note what was read. Time starts anew only when somebody else changed the Lease: of our
        own write it is known only that it is older than this."""
        if view is not None and self.view is not None and view.version == self.view.version:
            return self
        if view is not None and view.holder == self.config.identity:
            return replace(self, view=view)
        return replace(self, view=view, seen_ms=now_ms)

    def wrote(self, view: LeaseView, sent_ms: int) -> "Election":
        """Note that our write succeeded; it counts from when it was sent."""
        return replace(self, view=view, seen_ms=sent_ms)

    @property
    def leads(self) -> bool:
        """Whether we are the holder, as far as is known."""
        return self.view is not None and self.view.holder == self.config.identity

    def is_late(self, now_ms: int) -> bool:
        """Return whether another one holds the Lease and was not seen to renew it lately: it may be
        ours before long. A third of the Lease is more than two renewals."""
        held = self.view is not None and bool(self.view.holder) and not self.leads
        return held and now_ms - self.seen_ms > self.config.duration_ms // 3

    def next_step(self, now_ms: int) -> Step:
        """Return what to do."""
        view = self.view
        if view is None:
            return Step.CREATE
        if view.holder == self.config.identity:
            return Step.RENEW
        expired = now_ms - self.seen_ms > max(view.duration_ms, self.config.duration_ms)
        return Step.TAKE if not view.holder or expired else Step.WAIT

    def manifest(self, step: Step, time: str, acquired: str) -> Manifest:
        """Return the Lease to write. `time`: now, RFC 3339 with microseconds."""
        view = self.view
        before = view.transitions if view is not None else 0
        metadata: Manifest = {"name": self.config.name, "namespace": self.config.namespace}
        if view is not None:
            metadata["resourceVersion"] = view.version
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": metadata,
            "spec": {
                "holderIdentity": self.config.identity,
                "leaseDurationSeconds": max(1, self.config.duration_ms // 1000),
                "acquireTime": acquired,
                "renewTime": time,
                "leaseTransitions": before + (1 if step is Step.TAKE else 0),
            },
        }

    def release(self, time: str, acquired: str) -> Manifest:
        """Return the Lease that lets another one lead at once."""
        manifest = self.manifest(Step.RENEW, time, acquired)
        spec = manifest["spec"]
        assert isinstance(spec, dict)
        spec["holderIdentity"] = ""
        return manifest
