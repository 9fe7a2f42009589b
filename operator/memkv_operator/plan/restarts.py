"""Pods that are being replaced: how far each is, and which came to nothing. Pure.

A replacement is noted in its MemKVNode before anything is done, goes through these phases, and
stays noted until the new pod has been ready for `minReadySeconds`.

| phase     | the pod that goes | what it waits for                                   | then      |
| --------- | ----------------- | --------------------------------------------------- | --------- |
| Draining  | serves            | no slots left, or drainTimeoutSeconds with Proceed   | Replacing |
| Draining  | serves            | drainTimeoutSeconds with Pause: a person             | stays     |
| Replacing | serves            | room within maxUnavailable, then it is deleted      |           |
| Replacing | is gone           | a new pod that is ready for minReadySeconds         | over      |
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from memkv_operator.api.node import Restart, RestartPhase
from memkv_operator.api.pool import Pool
from memkv_operator.plan.membership import Member

BACK_S = 600  # an image is pulled and a large index read in this; also a Deployment's own deadline
TROUBLE_S = 60  # reasons of the first moments are often over in a minute


def is_current(member: Member, templates: Mapping[str, str]) -> bool:
    """Return whether a member's pod has the newest template of its group, and its drives."""
    if member.pod is None or member.group is None:
        return False
    facts = member.seen.facts if member.seen is not None else None
    if facts is not None and member.drives is not None and member.drives.outdated(facts):
        return False
    return member.pod.template == templates.get(member.group.name)


def is_over(
    pool: Pool, member: Member, restart: Restart, templates: Mapping[str, str], now_s: int
) -> bool:
    """Return whether a replacement has ended well, or is not wanted any more."""
    pod = member.pod
    if not member.desired:
        return True
    if pod is None or pod.uid == restart.pod_uid:
        # The template was taken back before the pod had gone.
        return pod is not None and not pod.deleting and is_current(member, templates)
    if not member.ready:
        return False
    if not is_current(member, templates):
        return True  # the template has changed again: its turn comes again
    return now_s - pod.ready_since_s >= pool.spec.min_ready_s


def advanced(pool: Pool, restart: Restart, now_s: int, *, drained: bool, refused: bool) -> Restart:
    """Return a replacement in its next phase, if it is time."""
    if restart.phase is RestartPhase.REPLACING:
        return restart
    waited_s = now_s - restart.since_s
    out_of_time = waited_s >= pool.spec.drain_timeout_s and not pool.spec.pauses_on_drain_timeout
    if drained or refused or out_of_time:
        return replace(restart, phase=RestartPhase.REPLACING, since_s=now_s)
    return restart


def failure(member: Member, restart: Restart, now_s: int) -> str:
    """Return why a new pod did not come to serve; empty: it does, or may still do."""
    if restart.phase is RestartPhase.DRAINING:
        return ""
    pod = member.pod
    if pod is not None and pod.uid == restart.pod_uid and not pod.deleting:
        return ""  # it waits for its turn
    if pod is None or pod.uid == restart.pod_uid:
        if now_s - restart.since_s < BACK_S:
            return ""
        return f"{member.name} has no new pod after {BACK_S} s; look at the DaemonSet's events"
    age_s = now_s - (pod.created_s or restart.since_s)
    if pod.trouble and age_s >= TROUBLE_S:
        return f"the new pod of {member.name} does not start: {pod.trouble}"
    if not member.ready and age_s >= BACK_S:
        return f"the new pod of {member.name} does not serve after {BACK_S} s"
    return ""


def has_failed(member: Member, restart: Restart, now_s: int) -> bool:
    """Return whether its new pod will hardly come to serve."""
    return bool(failure(member, restart, now_s))


def drain_failure(pool: Pool, member: Member, restart: Restart, now_s: int) -> str:
    """Return why a drain holds the update up until somebody decides; empty: it does not."""
    if restart.phase is not RestartPhase.DRAINING or not pool.spec.pauses_on_drain_timeout:
        return ""
    if now_s - restart.since_s < pool.spec.drain_timeout_s:
        return ""
    return (
        f"{member.name} has slots left after drainTimeoutSeconds ({pool.spec.drain_timeout_s}), "
        "and onDrainTimeout is Pause: raise the time, or say Proceed"
    )


def version_mismatch(
    member: Member,
    restart: Restart,
    members: Sequence[Member],
    restarting: Collection[str],
    templates: Mapping[str, str],
) -> str:
    """Return what is wrong with the version of a member that is back; empty: nothing.

    Pods of one pool have one image. Where its tag was pushed again, a node that had pulled it
    before comes back with what it has.
    """
    pod = member.pod
    if pod is None or pod.uid == restart.pod_uid or not is_current(member, templates):
        return ""
    mine = _version(member)
    others = {
        _version(other): other.name
        for other in members
        if other.name not in restarting and is_current(other, templates)
    }
    others.pop("", None)
    if not mine or not others or mine in others:
        return ""
    version, name = min(others.items())
    return (
        f"{member.name} came back with version {mine}, and {name} has {version} of the same image: "
        "was its tag pushed again? Name the image by its digest"
    )


def _version(member: Member) -> str:
    seen = member.seen
    return seen.facts.version if seen is not None and seen.facts is not None else ""
