"""Whether payload goes over RDMA where the pool asks for it, of a pool and of each of its nodes.

All of it follows from what nodes say now: the transports that they serve, and why RDMA is not among
them, in the words of `memkv doctor`. So what comes back is True again by itself. Of a node that
neither answers nor is alive in Kubernetes nothing is said.
"""

from collections.abc import Sequence

from memkv_operator.api.conditions import Condition, condition, joined, shortened
from memkv_operator.api.pool import Pool
from memkv_operator.plan.facts import NodeFacts
from memkv_operator.plan.membership import Member
from memkv_operator.render.daemonset import STATE_DIR

RDMA = "rdma"
RDMA_READY = "RDMAReady"
NODES_EXPLAINED = 3
PROBLEM_CHARS_MAX = 240


def rdma_ready(members: Sequence[Member]) -> Condition | None:
    """Return the condition of a pool; None where no group wants RDMA: nothing is stated then."""
    wanting = [member for member in members if member.desired and _wants(member)]
    if not wanting:
        return None
    heard = [(member, facts) for member in wanting if (facts := _heard(member)) is not None]
    if not heard:
        return condition(RDMA_READY, False, "WaitingForNodes", "no node has answered yet")
    falling = falling_back(members)
    if falling:
        return _fallback(falling, len(heard))
    parts = [f"{len(heard)} of {len(wanting)} nodes serve it"]
    if len(heard) < len(wanting):
        parts.append("the others do not answer")
    unused = [(m.name, problem) for m, facts in heard if (problem := _problem(facts))]
    parts += [f"{name} does not use {problem}" for name, problem in unused[:NODES_EXPLAINED]]
    return condition(RDMA_READY, True, "AllNodesServeRDMA", joined(parts))


def falling_back(members: Sequence[Member]) -> list[tuple[Member, NodeFacts]]:
    """Return the nodes that shall serve RDMA, and serve over TCP."""
    return [
        (member, facts)
        for member in members
        if member.desired and _wants(member)
        if (facts := _heard(member)) is not None and RDMA not in facts.transports
    ]


def rdma_of_node(member: Member) -> Condition | None:
    """Return the condition of one node; None where its group wants no RDMA."""
    if not _wants(member):
        return None
    facts = _heard(member)
    if facts is None:
        message = "it does not answer, or none of its workers serves"
        return condition(RDMA_READY, False, "NotServing", message)
    if RDMA not in facts.transports:
        message = joined([f"it serves over TCP: {_why(facts)}", *_command(member)])
        return condition(RDMA_READY, False, "FallbackToTCP", message)
    parts = ["it serves RDMA"]
    if problem := _problem(facts):
        parts.append(f"not used: {problem}")
    return condition(RDMA_READY, True, "ServesRDMA", joined(parts))


def payload_encrypted(pool: Pool) -> Condition | None:
    """Say what of the payload is not encrypted although the pool asks for it; None: all is, or
    nothing was asked for."""
    plain = [
        group.name
        for group in pool.spec.groups
        if group.network.rdma and group.network.payload_encryption == "TLS"
    ]
    if not pool.has_tls or not plain:
        return None
    message = (
        f"network.payloadEncryption: TLS is of TCP; payload that goes over RDMA (nodeGroups "
        f"{', '.join(plain)}) is not encrypted, and who reaches the RDMA network can read and "
        "change it: let only nodes and clients of this pool reach it, or say "
        "network.rdma.mode: Disabled"
    )
    return condition("PayloadEncrypted", False, "RDMAIsNotEncrypted", message)


def _fallback(falling: Sequence[tuple[Member, NodeFacts]], heard: int) -> Condition:
    required = [one for one in falling if one[0].group and one[0].group.network.rdma_required]
    shown = required or falling
    head = f"{len(shown)} of {heard} nodes serve over TCP"
    if required:
        head += ", and network.rdma.mode is Required; Preferred counts TCP as ready"
    parts = [head, *_command(shown[0][0])]
    parts += [f"{member.name}: {_why(facts)}" for member, facts in shown[:NODES_EXPLAINED]]
    if len(shown) > NODES_EXPLAINED:
        parts.append(f"and {len(shown) - NODES_EXPLAINED} more nodes: kubectl get mkvn -o wide")
    reason = "RDMAUnavailable" if required else "FallbackToTCP"
    return condition(RDMA_READY, False, reason, joined(parts))


def _wants(member: Member) -> bool:
    return member.group is not None and member.group.network.rdma


def _heard(member: Member) -> NodeFacts | None:
    """Return what counts of a node's words: the last, while the cluster sees it alive."""
    seen = member.seen
    if seen is None or seen.facts is None or not (seen.reachable or member.vouched):
        return None
    serves = any(worker.phase == "Ready" for worker in seen.facts.workers)
    return seen.facts if serves else None


def _why(facts: NodeFacts) -> str:
    if not facts.rdma_wanted:
        return "RDMA is off in its pod: it is of an earlier template or version"
    return _problem(facts, falling=True) or "it gives no reason"


def _problem(facts: NodeFacts, *, falling: bool = False) -> str:
    """Return what keeps workers from using RDMA devices; they often say the same. `falling`: only
    those that use none."""
    serving = [worker for worker in facts.workers if worker.phase == "Ready"]
    said = [w.rdma_problem for w in serving if not (falling and w.rdma_rails)]
    return shortened("; ".join(dict.fromkeys(one for one in said if one)), PROBLEM_CHARS_MAX)


def _command(member: Member) -> list[str]:
    if member.pod is None:
        return []
    where = f"kubectl -n {member.pod.namespace} exec {member.pod.name}"
    return [f"{where} -- memkv doctor --dir {STATE_DIR} says more"]
