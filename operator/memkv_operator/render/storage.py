"""Where a data-plane pod keeps what must outlive it."""

from memkv_operator.api.pool import NodeGroup, Pool

NODE_STATE_ROOT = "/var/lib/memkv"


def state_path(pool: Pool, group: NodeGroup) -> str:
    """Return the directory on the node that a group's pods keep their state in, "" for none."""
    if group.file is not None:
        return group.file.host_path
    if group.drives is not None:
        return f"{NODE_STATE_ROOT}/{pool.meta.namespace}-{pool.meta.name}"
    return ""
