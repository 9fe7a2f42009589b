"""RDMAReady: whether nodes serve payload over RDMA where the pool asks for it.

Nodes name the transports that they serve, so the condition comes true by itself once they serve it.
"""

from collections.abc import Sequence

from memkv_operator.api.conditions import Condition, condition
from memkv_operator.plan.membership import Member
from memkv_operator.plan.preflight import named

RDMA = "rdma"


def rdma_ready(members: Sequence[Member]) -> Condition | None:
    """Return the condition; None where no group wants RDMA: nothing is stated of it then."""
    wanting = [
        member
        for member in members
        if member.desired and member.group is not None and member.group.network.rdma
    ]
    if not wanting:
        return None
    asked = [(m, m.seen.facts) for m in wanting if m.seen is not None and m.seen.facts is not None]
    falling = [member for member, facts in asked if RDMA not in facts.transports]
    if not falling:
        if len(asked) < len(wanting):
            return condition("RDMAReady", False, "WaitingForNodes", "not all nodes answered yet")
        return condition("RDMAReady", True, "AllNodesServeRDMA", f"{len(asked)} nodes serve it")
    required = [m for m in falling if m.group is not None and m.group.network.rdma_required]
    names = named([member.name for member in required or falling])
    if required:
        message = (
            f"{names} serve over TCP, and network.rdma.mode is Required: this version of the data "
            "plane has no RDMA transport; say Preferred to count TCP as ready"
        )
        return condition("RDMAReady", False, "RDMAUnavailable", message)
    message = f"{names} serve over TCP: this version of the data plane has no RDMA transport"
    return condition("RDMAReady", False, "FallbackToTCP", message)
