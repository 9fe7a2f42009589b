"""Shard maps to and from memkv.v1.ShardMap. What decodes is valid and carries its own digest."""

from google.protobuf.message import DecodeError

from memkv import limits
from memkv.shardmap.map import (
    SLOT_HASH,
    MapInvalid,
    MapVersion,
    Move,
    ShardMap,
    Worker,
    WorkerState,
)
from memkv_proto import metadata_pb2 as pb


def version_to_proto(version: MapVersion) -> pb.MapVersion:
    """Return the message of a version."""
    return pb.MapVersion(lineage=version.lineage, term=version.term, epoch=version.epoch)


def version_from_proto(message: pb.MapVersion) -> MapVersion:
    """Return the version a message names, unchecked."""
    return MapVersion(bytes(message.lineage), message.term, message.epoch)


def map_to_proto(shard_map: ShardMap) -> pb.ShardMap:
    """Return the message of a map, repeated fields in canonical order."""
    return pb.ShardMap(
        version=version_to_proto(shard_map.version),
        digest=shard_map.digest,
        slots=shard_map.slots,
        replicas=shard_map.replicas,
        slot_hash=SLOT_HASH,
        workers=[_worker_to_proto(worker) for worker in shard_map.workers],
        owners=shard_map.owners,
        moving=[
            pb.MovingSlot(slot=slot, previous_owners=move.previous, since_epoch=move.since_epoch)
            for slot, move in sorted(shard_map.moving.items())
        ],
        fenced=[
            pb.FencedSlot(slot=slot, epoch=epoch)
            for slot, epoch in sorted(shard_map.fenced.items())
        ],
        tenant_generations=[
            pb.TenantGeneration(tenant_tag=tag, generation=generation)
            for tag, generation in sorted(shard_map.tenant_generations.items())
        ],
        intentional_empty=shard_map.intentional_empty,
    )


def map_from_proto(message: pb.ShardMap) -> ShardMap:
    """Return a checked map. MapInvalid when an invariant or the digest does not hold."""
    if message.slot_hash != SLOT_HASH:
        raise MapInvalid(
            f"shard map refused: slot hash {message.slot_hash!r}, this version knows {SLOT_HASH!r}"
            " (upgrade this side first)"
        )
    moving = {
        entry.slot: Move(tuple(entry.previous_owners), entry.since_epoch)
        for entry in message.moving
    }
    fenced = {entry.slot: entry.epoch for entry in message.fenced}
    generations = {bytes(e.tenant_tag): e.generation for e in message.tenant_generations}
    if (len(moving), len(fenced), len(generations)) != (
        len(message.moving), len(message.fenced), len(message.tenant_generations),
    ):  # fmt: skip
        raise MapInvalid("shard map refused: an entry appears twice")
    shard_map = ShardMap(
        version=version_from_proto(message.version),
        slots=message.slots,
        workers=tuple(_worker_from_proto(worker) for worker in message.workers),
        owners=bytes(message.owners),
        moving=moving,
        fenced=fenced,
        tenant_generations=generations,
        intentional_empty=message.intentional_empty,
        replicas=message.replicas,
    )
    shard_map.validate()
    if shard_map.digest != message.digest:
        raise MapInvalid(f"shard map refused: {shard_map.version} does not match its digest")
    return shard_map


def encode_map(shard_map: ShardMap) -> bytes:
    """Return a map as bytes, for files and pipes."""
    return map_to_proto(shard_map).SerializeToString(deterministic=True)


def decode_map(data: bytes) -> ShardMap:
    """Return a checked map. MapInvalid for anything else than what `encode_map` gave."""
    if len(data) > limits.MAP_BYTES_MAX:
        raise MapInvalid(f"shard map refused: {len(data)} bytes")
    try:
        message = pb.ShardMap.FromString(data)
    except DecodeError as error:
        raise MapInvalid("shard map refused: not a memkv.v1.ShardMap") from error
    return map_from_proto(message)


def _worker_to_proto(worker: Worker) -> pb.Worker:
    return pb.Worker(
        uuid=worker.uuid,
        incarnation=worker.incarnation,
        node_name=worker.node_name,
        host=worker.host,
        port=worker.port,
        state=pb.WorkerState.ValueType(worker.state.value),
        failure_domain=worker.failure_domain,
        weight=worker.weight,
    )


def _worker_from_proto(message: pb.Worker) -> Worker:
    try:
        state = WorkerState(message.state)
    except ValueError as error:
        # A state of a later version: not knowing what it may be asked, ask it nothing.
        raise MapInvalid(f"shard map refused: worker state {message.state}") from error
    return Worker(
        uuid=bytes(message.uuid),
        incarnation=message.incarnation,
        node_name=message.node_name,
        host=message.host,
        port=message.port,
        state=state,
        failure_domain=message.failure_domain,
        weight=message.weight,
    )
