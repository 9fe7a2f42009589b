"""By which capacity a worker is given slots: small changes must not reshuffle a cache."""

from memkv_operator.api.node import MemKVNode

CHANGE_PERCENT_MIN = 10


def counted_bytes(node: MemKVNode | None, uuid: str, capacity_bytes: int) -> int:
    """Return the capacity that counts for a worker: the one that counted so far, unless the worker
    has at least a tenth more or less by now. `uuid`: in hex."""
    before = node.counted_bytes(uuid) if node is not None else 0
    change = abs(capacity_bytes - before)
    return capacity_bytes if change * 100 >= before * CHANGE_PERCENT_MIN else before
