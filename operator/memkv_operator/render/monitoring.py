"""What asks a Prometheus to scrape a pool (spec.monitoring.podMonitor): a PodMonitor.

Pure: a manifest only.
"""

from memkv.metadata.kubernetes.json_values import Manifest
from memkv_operator.api.meta import child_meta
from memkv_operator.api.names import (
    LABEL_NAME,
    LABEL_POOL,
    POD_MONITORS,
    POOLS,
    pool_labels,
)
from memkv_operator.api.pool import Pool
from memkv_operator.render.children import Child, stamped

COMPONENT = "monitoring"
PORT = "metrics"
"""Name of the port of every pod that serves /metrics."""


def pod_monitor(pool: Pool) -> Child:
    """Return the PodMonitor of a pool: its data-plane and metadata pods.

    It has the labels of the pool, too: by them a Prometheus that selects its PodMonitors
    (`release: prometheus` and the like) finds it.
    """
    labels = {**pool.meta.labels, **pool_labels(pool.meta.name, COMPONENT)}
    manifest: Manifest = {
        "apiVersion": POD_MONITORS.api_version,
        "kind": POD_MONITORS.kind,
        "metadata": child_meta(POOLS, pool.meta, pool.meta.name, labels),
        "spec": {
            "selector": {"matchLabels": {LABEL_NAME: "memkv", LABEL_POOL: pool.meta.name}},
            "podMetricsEndpoints": [
                {
                    "port": PORT,
                    # The labels by which alerts and the dashboard tell pools and nodes apart.
                    "relabelings": [
                        _copied("__meta_kubernetes_pod_label_memkv_io_pool", "pool"),
                        _copied("__meta_kubernetes_pod_node_name", "node"),
                    ],
                }
            ],
        },
    }
    return stamped(manifest)


def _copied(source: str, target: str) -> Manifest:
    return {"sourceLabels": [source], "targetLabel": target}
