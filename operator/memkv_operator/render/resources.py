"""What a data-plane container asks of its node: memory, huge pages, cores, drives and NICs."""

from memkv.io.huge_pages import parse_page_size, whole_pages
from memkv.limits import MIB
from memkv.metadata.kubernetes.json_values import Manifest
from memkv_operator.api.names import drive_resource
from memkv_operator.api.pool import HUGE_PAGES_NONE, NodeGroup, Pool
from memkv_operator.api.quantity import format_bytes

SUPERVISOR_BYTES = 192 * MIB  # Python with grpc takes about 90 MiB; the rest is room
WORKER_BYTES = 256 * MIB  # beside blocks and index: sessions, frames, thread stacks
INDEX_SHARE = 8  # beside blocks in huge pages, the index takes an eighth of them at most
WORKER_CPU_MILLI = 250  # asked for where a pool says nothing: what an idle worker can spare


def resources_of(pool: Pool, group: NodeGroup) -> Manifest:
    """Return the resources of a group's container.

    Requests equal limits, but for cores: where the group names whole cores once, they are both, and
    the pod is Guaranteed, which kubelet's static CPU manager gives cores of its own.
    """
    exact = {"memory": format_bytes(memory_needed(group))}
    if group.huge_pages != HUGE_PAGES_NONE:
        exact[huge_page_resource(group)] = format_bytes(huge_page_bytes_needed(group))
    if group.network.rdma:
        exact.update({name: str(count) for name, count in group.network.rdma_resources})
    if group.drives is not None:
        exact[drive_resource(group.name, pool.meta.uid)] = "1"
    requests, limits = (dict(group.resources.get(kind, {})) for kind in ("requests", "limits"))
    whole = [cpu for cpu in (requests.get("cpu"), limits.get("cpu")) if cpu and cpu.isdecimal()]
    if whole:
        requests.setdefault("cpu", whole[0])
        limits.setdefault("cpu", whole[0])
    elif "cpu" not in limits:
        requests.setdefault("cpu", f"{WORKER_CPU_MILLI * group.workers}m")
    resources: Manifest = {"requests": {**exact, **requests}, "limits": {**exact, **limits}}
    if group.network.mode == "DRA":
        resources["claims"] = [{"name": "rdma"}]
    return resources


def memory_needed(group: NodeGroup) -> int:
    """Return the bytes of ordinary memory of a node's processes."""
    process_bytes = SUPERVISOR_BYTES + group.workers * WORKER_BYTES
    if group.huge_pages == HUGE_PAGES_NONE:
        return process_bytes + group.memory_bytes
    return process_bytes + group.memory_bytes // INDEX_SHARE


def huge_page_resource(group: NodeGroup) -> str:
    """Return the name of the resource."""
    return f"hugepages-{group.huge_pages}"


def huge_page_bytes_needed(group: NodeGroup) -> int:
    """Return the bytes of whole huge pages of a node's workers; 0: not one page for each."""
    page_bytes = parse_page_size(group.huge_pages)
    if not page_bytes:
        return 0
    return group.workers * whole_pages(group.memory_bytes // group.workers, page_bytes)
