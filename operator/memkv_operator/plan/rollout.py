"""Replacing data-plane pods after their template changed (the DaemonSets say OnDelete). Pure.

First one node of the smallest group tries the new pods, then the others follow, each when the one
before has served for `minReadySeconds`. Nodes that are down for whatever reason count against
`maxUnavailable`, and pods that do not serve anyway go first, for they cost nothing. An update whose
new pods do not come to serve stops, until they do or the template changes: setting the old image
rolls back in the same way.

What is under way is read from the objects it was written to, MemKVPool.status.update and
MemKVNode.status.restart, and nothing is done that was not written there first. So any operator goes
on where another one stopped.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from memkv.metadata.kubernetes.json_values import Reader
from memkv_operator.api.node import Restart, RestartPhase
from memkv_operator.api.pool import Pool
from memkv_operator.api.update import Update, UpdatePhase, read_update
from memkv_operator.plan.membership import Member, Refusal
from memkv_operator.plan.preflight import named
from memkv_operator.plan.restarts import (
    advanced,
    drain_failure,
    failure,
    is_current,
    is_over,
    version_mismatch,
)


@dataclass(frozen=True, slots=True)
class Rolling:
    """What remains of a rolling update, and which pods may go now."""

    outdated: tuple[str, ...] = ()
    """Nodes whose pod has an older template."""
    victims: tuple[Member, ...] = ()
    """Members whose pods to delete now."""
    updated: int = 0
    reason: str = "RollingUpdate"
    message: str = ""
    """What the update waits for."""
    restarts: Mapping[str, Restart] = field(default_factory=dict)
    """Replacements that are under way, by node: what to note of them."""
    begun: tuple[str, ...] = ()
    """Nodes whose turn has just come."""
    update: Update | None = None
    """What to note of the whole; None: nothing is under way."""
    blocked: bool = False
    """Whether nothing is made of the spec, so that nobody knows which pods are the newest."""

    @property
    def under_way(self) -> bool:
        """Whether pods are to be replaced, or to prove themselves."""
        return bool(self.outdated or self.restarts)

    @property
    def done(self) -> bool:
        """Whether every pod is the newest and has proved itself."""
        return not self.under_way and not self.blocked


def at_rest(pool: Pool, members: Sequence[Member]) -> Rolling:
    """Return an update that stays where it is while nothing can be made of a pool's spec."""
    return Rolling(
        restarts=_noted(members),
        updated=Reader(pool.status, "status").integer("updatedNodes"),
        update=read_update(pool.status),
        reason="ConfigInvalid",
        message="nothing is made of the spec before ConfigValid says that it can be",
        blocked=True,
    )


def rolling_update(
    pool: Pool,
    members: Sequence[Member],
    templates: Mapping[str, str],
    revision: str,
    drained: Collection[str],
    now_s: int,
    *,
    settled: bool,
    unmade: Collection[str] = (),
) -> Rolling:
    """Return the next step. `templates`: group -> hash of the template that pods should have.

    `revision`: of all templates. `drained`: nodes that have given everything away. `settled`: no
    slots are moving, so that one more node may go. `unmade`: groups whose DaemonSet does not have
    its template yet, so that a pod that goes would come back as it was, again and again.
    """
    desired = [member for member in members if member.desired]
    with_pod = [member for member in desired if member.pod is not None]
    outdated = [member for member in with_pod if not is_current(member, templates)]
    step = Rolling(
        outdated=tuple(member.name for member in outdated),
        updated=len(with_pod) - len(outdated),
        restarts=_noted(members),
        update=read_update(pool.status),
    )
    if pool.spec.paused:
        return replace(step, reason="UpdatePaused", message="the pool is paused")
    step = replace(step, restarts=_progress(pool, members, templates, drained, now_s))
    if step.done:
        return replace(step, update=None)
    if pool.spec.update_type == "OnDelete":
        gone = _gone(desired, step.restarts)
        return replace(step, restarts=gone, reason="WaitingForDeletion", update=None)
    problem = _problem(pool, desired, step.restarts, templates, now_s)
    if problem[1]:
        return replace(step, reason=problem[0], message=problem[1])
    if step.update is not None and step.update.revision != revision:
        step = replace(step, restarts=_gone(desired, step.restarts))
    if waiting := sorted({m.group.name for m in outdated if m.group is not None} & {*unmade}):
        message = f"the DaemonSet of {named(waiting)} is not written yet"
        return replace(step, reason="WaitingForDaemonSet", message=message)
    update, noted = _current_update(revision, desired, outdated, step, now_s)
    victims = *_broken(outdated), *_due(pool, desired, step.restarts)
    step = replace(step, update=update, victims=victims)
    if not noted:
        return step
    return _begin(pool, step, update, desired, outdated, now_s, settled=settled)


def max_unavailable(pool: Pool, desired: int) -> int:
    """Return how many nodes may be down at once; at least one, or an update never ended."""
    wanted = pool.spec.max_unavailable
    if isinstance(wanted, int):
        return max(1, wanted)
    return max(1, desired * int(wanted.rstrip("%")) // 100)


# --- inside ----------------------------------------------------------------------------------


def _noted(members: Sequence[Member]) -> dict[str, Restart]:
    return {member.name: member.restart for member in members if member.restart is not None}


def _progress(
    pool: Pool,
    members: Sequence[Member],
    templates: Mapping[str, str],
    drained: Collection[str],
    now_s: int,
) -> dict[str, Restart]:
    """Return the replacements that go on, each in its phase."""
    noted = _noted(members)
    goes_on: dict[str, Restart] = {}
    for member in members:
        restart = noted.get(member.name)
        if restart is None:
            continue
        wrong = version_mismatch(member, restart, members, noted, templates)
        if is_over(pool, member, restart, templates, now_s) and not (wrong and member.desired):
            continue
        goes_on[member.name] = advanced(
            pool,
            restart,
            now_s,
            drained=member.name in drained,
            refused=member.refusal is Refusal.NO_OTHER_NODE,
        )
    return goes_on


def _gone(desired: Sequence[Member], restarts: Mapping[str, Restart]) -> dict[str, Restart]:
    """Return the replacements whose pod has gone: the others have not begun, and need not."""
    serve = {m.name for m in desired if m.restart is not None and _waits(m, m.restart)}
    return {name: restart for name, restart in restarts.items() if name not in serve}


def _waits(member: Member, restart: Restart) -> bool:
    pod = member.pod
    return pod is not None and pod.uid == restart.pod_uid and not pod.deleting


def _problem(
    pool: Pool,
    desired: Sequence[Member],
    restarts: Mapping[str, Restart],
    templates: Mapping[str, str],
    now_s: int,
) -> tuple[str, str]:
    """Return (reason, message) of what stops an update; no message: nothing does."""
    for member in desired:
        restart = restarts.get(member.name)
        if restart is None:
            continue
        pod = member.pod
        if pod is None or pod.uid == restart.pod_uid or is_current(member, templates):
            message = failure(member, restart, now_s) or version_mismatch(
                member, restart, desired, restarts, templates
            )
            if message:
                return "UpdatePaused", message
        if message := drain_failure(pool, member, restart, now_s):
            return "DrainTimeout", message
    return "", ""


def _current_update(
    revision: str,
    desired: Sequence[Member],
    outdated: Sequence[Member],
    step: Rolling,
    now_s: int,
) -> tuple[Update, bool]:
    """Return the update under way, and whether it was noted already as it is."""
    before = step.update
    serving = [m for m in outdated if m.ready and m.memkv_node is not None]
    if before is None or before.revision != revision:
        started_s = now_s
    elif before.phase is UpdatePhase.ROLLING:
        return before, True
    else:
        started_s = before.started_s
        canary = next((m for m in desired if m.name == before.canary), None)
        if canary is not None and canary.name in step.restarts:
            return before, True
        if canary is not None and canary.name not in step.outdated and canary.pod is not None:
            return replace(before, phase=UpdatePhase.ROLLING), False
        if canary is not None and canary in serving:
            return before, True
    name = _canary(desired, serving)
    phase = UpdatePhase.CANARY if name else UpdatePhase.ROLLING
    return Update(revision, phase, name, started_s), False


def _canary(desired: Sequence[Member], serving: Sequence[Member]) -> str:
    """Return the first node of the smallest group."""
    sizes: dict[str, int] = {}
    for member in desired:
        if member.group is not None:
            sizes[member.group.name] = sizes.get(member.group.name, 0) + 1
    ranked = [(sizes[m.group.name], m.group.name, m.name) for m in serving if m.group is not None]
    return min(ranked)[2] if ranked else ""


def _broken(outdated: Sequence[Member]) -> list[Member]:
    """Return those whose pod serves nobody. One that kubelet sees ready may serve clients,
    although it does not answer here."""
    return [m for m in outdated if not m.vouched and m.pod is not None and not m.pod.deleting]


def _due(pool: Pool, desired: Sequence[Member], restarts: Mapping[str, Restart]) -> list[Member]:
    """Return those whose replacement was noted, and whose pod may go now."""
    budget = max_unavailable(pool, len(desired))
    down = sum(not member.ready for member in desired)
    due: list[Member] = []
    for member in desired:
        restart = member.restart if member.name in restarts else None
        if restart is None or restart.phase is not RestartPhase.REPLACING:
            continue
        if not _waits(member, restart) or not member.vouched:
            continue
        if down + member.ready <= budget:
            down += member.ready
            due.append(member)
    return due


def _begin(
    pool: Pool,
    step: Rolling,
    update: Update,
    desired: Sequence[Member],
    outdated: Sequence[Member],
    now_s: int,
    *,
    settled: bool,
) -> Rolling:
    """Note the next replacements, as many as there is room for."""
    restarts = dict(step.restarts)
    down = [m.name for m in desired if not m.ready or m.name in restarts]
    room = max_unavailable(pool, len(desired)) - len(down)
    begun: list[str] = []
    for member in sorted(outdated, key=lambda m: (m.ready, m.name)):
        pod = member.pod
        if pod is None or pod.deleting or not member.vouched or member.memkv_node is None:
            continue
        if update.phase is UpdatePhase.CANARY and member.name != update.canary:
            continue
        cost = 0 if member.name in down else 1
        if member.name in restarts or room < cost or not settled:
            continue
        room -= cost
        begun.append(member.name)
        drains = _drains(pool, member)
        phase = RestartPhase.DRAINING if drains else RestartPhase.REPLACING
        restarts[member.name] = Restart(phase, pod.uid, drains, now_s)
    return replace(
        step,
        restarts=restarts,
        begun=tuple(begun),
        message=_waiting(down, begun, settled=settled),
    )


def _drains(pool: Pool, member: Member) -> bool:
    """Return whether a node gives its slots away before its pod goes: docs/decisions/0003."""
    if pool.spec.drain_timeout_s == 0 or member.group is None:
        return False
    return pool.spec.drains_always or not member.group.survives_restarts


def _waiting(down: Sequence[str], begun: Sequence[str], *, settled: bool) -> str:
    if begun:
        return f"replaces {', '.join(begun)}"
    if down:
        return f"waits for {', '.join(down[:3])}, down or being replaced"
    return "" if settled else "waits for slots that move"
