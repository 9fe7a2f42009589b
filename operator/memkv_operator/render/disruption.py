"""How many pods others may evict at once: PodDisruptionBudgets."""

from memkv.metadata.kubernetes.json_values import Manifest
from memkv_operator.api.meta import child_meta
from memkv_operator.api.names import (
    COMPONENT_METADATA,
    COMPONENT_NODE,
    LABEL_COMPONENT,
    LABEL_POOL,
    POD_BUDGETS,
    POOLS,
    metadata_name,
    pool_labels,
)
from memkv_operator.api.pool import Pool


def node_budget(pool: Pool, available_min: int) -> Manifest:
    """Return the budget of data-plane pods. A whole number: the API server cannot count a share of
    pods that DaemonSets own."""
    name = f"{pool.meta.name}-nodes"
    return _budget(pool, name, COMPONENT_NODE, {"minAvailable": available_min})


def metadata_budget(pool: Pool) -> Manifest:
    """Return the budget of metadata pods: one at a time."""
    name = metadata_name(pool.meta.name)
    return _budget(pool, name, COMPONENT_METADATA, {"maxUnavailable": 1})


def _budget(pool: Pool, name: str, component: str, limit: Manifest) -> Manifest:
    chosen = {LABEL_COMPONENT: component, LABEL_POOL: pool.meta.name}
    return {
        "apiVersion": POD_BUDGETS.api_version,
        "kind": POD_BUDGETS.kind,
        "metadata": child_meta(POOLS, pool.meta, name, pool_labels(pool.meta.name, component)),
        "spec": {**limit, "selector": {"matchLabels": chosen}},
    }
