"""An order as the NodeSpec that carries it.

Its revision names the content. The node tells it back with its facts, so what is in force is known
whoever applied it and whatever answer was lost; and its generation is one above the node's own, so
it grows over restarts and changes of the leader without anybody keeping a count.
"""

from hashlib import sha256

from memkv.wire.signed import key_name
from memkv_operator.plan.orders import Order
from memkv_proto import node_admin_pb2 as pb


def spec_of(order: Order) -> pb.NodeSpec:
    """Return the spec of an order, with its revision and without a generation."""
    state = pb.NODE_STATE_DRAINING if order.draining else pb.NODE_STATE_ACTIVE
    spec = pb.NodeSpec(state=state)
    for quota in order.quotas:
        spec.quotas.add(
            tenant=quota.tenant,
            worker=quota.worker,
            flash_bytes=quota.flash_bytes,
            memory_bytes=quota.memory_bytes,
        )
    for key in order.ticket_keys:
        given = spec.ticket_keys.add(key_id=key_name(key.key_id), public_key=key.public_key)
        if key.not_after_s is not None:
            given.not_after.seconds = key.not_after_s
    spec.revision = sha256(spec.SerializeToString(deterministic=True)).hexdigest()[:16]
    return spec
