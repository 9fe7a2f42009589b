"""The status of a pool, beside its conditions."""

from collections.abc import Sequence

from memkv.metadata.kubernetes.json_values import JsonValue, Manifest, Reader
from memkv.shardmap import ShardMap
from memkv_operator.api.pool import Pool
from memkv_operator.api.quantity import format_bytes_roughly
from memkv_operator.plan.drive_health import drive_figures
from memkv_operator.plan.health import MapView
from memkv_operator.plan.membership import Member
from memkv_operator.plan.ownership import lost_nodes, unserved_slots
from memkv_operator.plan.rdma import falling_back
from memkv_operator.plan.rollout import Rolling
from memkv_operator.render.endpoints import metadata_endpoint


def pool_figures(
    pool: Pool, members: Sequence[Member], view: MapView, rolling: Rolling, revision: str
) -> Manifest:
    """Return every field of the status but observedGeneration and conditions."""
    desired = [member for member in members if member.desired]
    ready = sum(member.ready for member in desired)
    lost = lost_nodes(view.shard_map)
    figures: Manifest = {
        "desiredNodes": len(desired),
        "readyNodes": ready,
        "nodeSummary": f"{ready}/{len(desired)}",
        "updatedNodes": rolling.updated,
        "drainingNodes": sum(m.draining for m in members if m.kube_node is not None),
        "lostNodes": sum(member.name in lost for member in members),
        "metadataEndpoint": metadata_endpoint(pool),
        "updateRevision": revision,
        "capacity": _capacity(members),
    }
    if any(group.network.rdma for group in pool.spec.groups):
        figures["fallbackNodes"] = len(falling_back(members))
    if pool.spec.tenants:
        figures["tenants"] = _tenants(pool, members)
    if rolling.update is not None:
        figures["update"] = rolling.update.manifest()
    if rolling.done:
        figures["currentRevision"] = revision
    elif pool.status.get("currentRevision"):
        figures["currentRevision"] = pool.status["currentRevision"]
    drives = drive_figures(members)
    if drives is not None:
        figures["drives"] = drives
    versions = sorted({m.seen.facts.version for m in members if m.seen and m.seen.facts})
    if versions:
        figures["version"] = ", ".join(versions)
    if view.shard_map is not None:
        figures["shardMap"] = _map_figures(pool, view.shard_map, view.published_at, members)
    return figures


def _capacity(members: Sequence[Member]) -> Manifest:
    workers = [w for m in members if m.seen and m.seen.facts for w in m.seen.facts.workers]
    total = sum(worker.capacity_bytes for worker in workers)
    used = sum(worker.used_bytes_roughly for worker in workers)
    return {
        "total": format_bytes_roughly(total),
        "used": format_bytes_roughly(used),
        "available": format_bytes_roughly(total - used),
    }


def _tenants(pool: Pool, members: Sequence[Member]) -> list[JsonValue]:
    """Return what the tenants of the spec use, and what of their quotas the nodes have in force."""
    workers = [w for m in members if m.seen and m.seen.facts for w in m.seen.facts.workers]
    figures: list[JsonValue] = []
    for tenant in pool.spec.tenants:
        found = [usage for w in workers for usage in w.tenants if usage.name == tenant.name]
        figures.append(
            {
                "name": tenant.name,
                "flashUsed": format_bytes_roughly(sum(u.flash_bytes for u in found)),
                "flashGuaranteed": format_bytes_roughly(
                    sum(u.flash_guaranteed_bytes for u in found)
                ),
                "memoryUsed": format_bytes_roughly(sum(u.memory_bytes for u in found)),
                "memoryGuaranteed": format_bytes_roughly(
                    sum(u.memory_guaranteed_bytes for u in found)
                ),
            }
        )
    return figures


def _map_figures(
    pool: Pool, shard_map: ShardMap, published_at: str, members: Sequence[Member]
) -> Manifest:
    version = shard_map.version
    before = Reader(pool.status, "status").object("shardMap")
    if not published_at and before.integer("epoch") == version.epoch:
        published_at = before.text("publishedAt")  # by the operator that led before
    figures: Manifest = {
        "name": pool.meta.name,
        "lineage": version.lineage.hex(),
        "term": version.term,
        "epoch": version.epoch,
        "digest": shard_map.digest.hex(),
        "movingSlots": len(shard_map.moving),
        "unservedSlots": unserved_slots(shard_map, _serving_workers(members)),
    }
    if published_at:
        figures["publishedAt"] = published_at
    return figures


def _serving_workers(members: Sequence[Member]) -> frozenset[str]:
    return frozenset(
        worker.uuid
        for member in members
        if member.seen is not None and member.seen.reachable and member.seen.facts is not None
        for worker in member.seen.facts.workers
        if worker.phase == "Ready"
    )
