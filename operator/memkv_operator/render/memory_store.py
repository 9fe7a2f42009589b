"""Groups without flash: the store of each worker is a file in memory (tmpfs).

A quarter of the group's memory stays what memory is to every store, for blocks in flight and the
index; the file gets the rest. It goes with the pod, and so does what is in it.
"""

from memkv.limits import SECTOR_BYTES
from memkv.metadata.kubernetes.json_values import Manifest
from memkv_operator.api.pool import NodeGroup

DIRECTORY = "/var/lib/memkv-memory"
VOLUME = "memory"
FLIGHT_SHARE = 4  # a quarter


def flight_bytes(group: NodeGroup) -> int:
    """Return the bytes of each worker for blocks in flight and the index."""
    return group.memory_bytes // group.workers // FLIGHT_SHARE


def file_bytes(group: NodeGroup) -> int:
    """Return the bytes of each worker's file, in whole sectors."""
    rest = group.memory_bytes // group.workers - flight_bytes(group)
    return rest // SECTOR_BYTES * SECTOR_BYTES


def memory_volume(group: NodeGroup) -> Manifest:
    """Return the volume, which counts as memory of the container that fills it."""
    # A directory and its entries take pages too.
    size_bytes = group.workers * (file_bytes(group) + SECTOR_BYTES) + 16 * SECTOR_BYTES
    return {
        "name": VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": str(size_bytes)},
    }  # fmt: skip


def memory_mount() -> Manifest:
    """Return where it is mounted."""
    return {"name": VOLUME, "mountPath": DIRECTORY}
