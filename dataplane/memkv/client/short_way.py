"""The short way of a get of one block: one request to its owner, run by the calling thread.

Nearly all such gets are hits, or misses in a pool where nothing moves; for these the lists and
generators of the long way (operations.py, waves.py) take longer than the round trip. Whatever is
out of the ordinary is left to the long way, which begins anew: the request had no effect.
"""

from __future__ import annotations

from memkv._hotpath import Job, block_name
from memkv.client.calls import Call
from memkv.client.core import ClientCore
from memkv.client.drive import settle
from memkv.client.native import NativeRequest
from memkv.client.routing import Key, key_error
from memkv.client.session import WorkerSession
from memkv.clock import deadline_after_ms
from memkv.limits import SMALL_PAYLOAD_BYTES_MAX
from memkv.shardmap.map import UNASSIGNED
from memkv.status import Status

_MISS = int(Status.MISS)


def get_one(
    core: ClientCore, key: Key, address: int, size_bytes: int, deadline_ms: int
) -> int | None:
    """Return the result of the get, as `Client.batch_get_into` would, or None: take the long way.

    What may go through shared memory takes the long way, small blocks excepted. Raises CallerError
    for what cannot be a key.
    """
    routes, ticket = core.routes(), core.ticket
    if routes is None or ticket is None:
        return None
    route = routes.route
    try:
        block_id, slot = block_name(key, ticket.salt, route.shard_map.slots)
    except (ValueError, TypeError) as error:
        raise key_error(error) from error
    worker = route.owner_index(slot)
    if worker == UNASSIGNED:
        return None
    session = routes.sessions[worker]
    is_small = size_bytes <= SMALL_PAYLOAD_BYTES_MAX
    if len(core.regions) and _goes_another_way(core, session, address, size_bytes, is_small):
        return None
    lanes = session.lanes_or_status()  # who asks has to report: it may be the breaker's one probe
    if isinstance(lanes, Status):
        return None
    group = lanes.express if is_small else lanes.bulk
    deadline_ns = deadline_after_ms(core.options.clock, deadline_ms)
    job = Job.get_one(
        block_id, address, size_bytes, ticket.tenant_tag, route.needed.get(slot, 0),
        route.version.term, deadline_ns,
    )
    group.run(job)
    if job.done and (status := job.first_status) >= _MISS:
        session.succeeded()
        return None if status == _MISS and route.previous_owners(slot) else status
    buffers = (((address, size_bytes),),)
    call = Call(NativeRequest(group, job), [0], session, worker, buffers)
    settle(call, deadline_ns)
    session.finished(call)
    if call.quarantined:
        return int(Status.QUARANTINED)
    if job.first_status == Status.CORRUPT:
        core.counters.corrupt += 1
    # The long way would have a whole deadline of its own.
    return int(Status.TIMEOUT) if job.status == Status.TIMEOUT else None


def _goes_another_way(
    core: ClientCore, session: WorkerSession, address: int, size_bytes: int, is_small: bool
) -> bool:
    if core.regions.foreign_count:
        region = core.regions.find(address, size_bytes)
        if region is not None and region.is_foreign:
            return True
    is_shared = session.local.is_possible and core.regions.shared_count
    return not is_small and bool(is_shared or session.rdma.is_possible)
