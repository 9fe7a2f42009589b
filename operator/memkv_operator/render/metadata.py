"""The metadata service of a pool: Deployment, Service, and the right to watch one MemKVShardMap."""

from collections.abc import Mapping, Sequence

from memkv.metadata.kubernetes.json_values import JsonValue, Manifest
from memkv_operator.api.meta import child_meta
from memkv_operator.api.names import (
    COMPONENT_METADATA,
    DEPLOYMENTS,
    LABEL_COMPONENT,
    LABEL_POOL,
    POOLS,
    ROLE_BINDINGS,
    ROLES,
    SERVICE_ACCOUNTS,
    SERVICES,
    SHARD_MAPS,
    Resource,
    metadata_name,
    metadata_secret_name,
    pool_labels,
)
from memkv_operator.api.pool import Pool
from memkv_operator.api.quantity import number_of
from memkv_operator.render.identity import (
    BY_GROUP,
    metadata_flags,
    secret_mount,
    secret_volume,
    tenants_map,
    tenants_mount,
    tenants_volume,
)
from memkv_operator.render.image import image_reference

CONTAINER = "memkv-metadata"
USER = 65532  # of nobody in particular; the image has no such name
GRACE_S = 30
DEAD_NODE_S = 30  # until its pods are replaced; 300 by default, and both may be on one node
DEAD_NODE_TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
_REQUESTS = {"cpu": "50m", "memory": "128Mi"}
_LIMITS = {"memory": "512Mi"}


def metadata_manifests(pool: Pool, own_image: str) -> list[Manifest]:
    """Return everything of the metadata service."""
    return [
        _object(SERVICE_ACCOUNTS, pool, {"automountServiceAccountToken": False}),
        _role(pool),
        _role_binding(pool),
        _service(pool),
        *([tenants_map(pool)] if pool.has_tls else []),
        _object(DEPLOYMENTS, pool, {"spec": _deployment_spec(pool, own_image)}),
    ]


def _object(resource: Resource, pool: Pool, content: Manifest) -> Manifest:
    name = metadata_name(pool.meta.name)
    labels = pool_labels(pool.meta.name, COMPONENT_METADATA)
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": child_meta(POOLS, pool.meta, name, labels),
        **content,
    }


def _role(pool: Pool) -> Manifest:
    rule: Manifest = {
        "apiGroups": [SHARD_MAPS.group],
        "resources": [SHARD_MAPS.plural],
        "resourceNames": [pool.meta.name],
        "verbs": ["get", "list", "watch"],
    }
    return _object(ROLES, pool, {"rules": [rule]})


def _role_binding(pool: Pool) -> Manifest:
    name = metadata_name(pool.meta.name)
    account: Manifest = {
        "kind": SERVICE_ACCOUNTS.kind,
        "name": name,
        "namespace": pool.meta.namespace,
    }
    role: Manifest = {"apiGroup": ROLES.group, "kind": ROLES.kind, "name": name}
    return _object(ROLE_BINDINGS, pool, {"roleRef": role, "subjects": [account]})


def _service(pool: Pool) -> Manifest:
    port: Manifest = {
        "name": "grpc",
        "port": pool.spec.ports.metadata,
        "targetPort": "grpc",
        "protocol": "TCP",
    }
    return _object(SERVICES, pool, {"spec": {"selector": _chosen(pool), "ports": [port]}})


def _chosen(pool: Pool) -> dict[str, JsonValue]:
    return {LABEL_COMPONENT: COMPONENT_METADATA, LABEL_POOL: pool.meta.name}


def _deployment_spec(pool: Pool, own_image: str) -> Manifest:
    extra = pool.spec.pod_template
    labels = pool_labels(pool.meta.name, COMPONENT_METADATA)
    return {
        "replicas": pool.spec.metadata_replicas,
        "selector": {"matchLabels": _chosen(pool)},
        # A replica more first: clients that reconnect find one that has a map.
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
        },
        "template": {
            "metadata": {
                "labels": {**extra.labels, **labels},
                "annotations": dict(extra.annotations),
            },
            "spec": _pod_spec(pool, own_image),
        },
    }


def _leaves_dead_nodes(told: Sequence[JsonValue]) -> list[JsonValue]:
    """Return what has pods leave a dead node soon, where the pool does not say how long."""
    keys = {one.get("key") for one in told if isinstance(one, Mapping)}
    return [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": DEAD_NODE_S}
        for key in DEAD_NODE_TAINTS
        if key not in keys and None not in keys
    ]


def _pod_spec(pool: Pool, own_image: str) -> Manifest:
    image, extra = pool.spec.image, pool.spec.pod_template
    placement = pool.spec.metadata_pods
    spec: Manifest = {
        "serviceAccountName": metadata_name(pool.meta.name),
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": _chosen(pool)},
                # Pods of the revision that an update replaces would push both new ones together.
                "matchLabelKeys": ["pod-template-hash"],
            }
        ],
        "containers": [_container(pool, own_image)],
    }
    if placement.node_selector:
        spec["nodeSelector"] = dict(placement.node_selector)
    spec["tolerations"] = [*placement.tolerations, *_leaves_dead_nodes(placement.tolerations)]
    if pool.has_tls:
        secret = metadata_secret_name(pool.meta.name)
        spec["volumes"] = [secret_volume(secret, BY_GROUP), tenants_volume(pool)]
    if image.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in image.pull_secrets]
    if extra.priority_class:
        spec["priorityClassName"] = extra.priority_class
    return spec


def _container(pool: Pool, own_image: str) -> Manifest:
    ports = pool.spec.ports
    arguments: list[JsonValue] = [
        "metadata",
        f"--kubernetes={pool.key}",
        f"--listen=0.0.0.0:{ports.metadata}",
        f"--http-port={ports.metrics}",
        *metadata_flags(pool),
    ]
    return {
        "name": CONTAINER,
        "image": image_reference(pool.spec.image, own_image),
        "imagePullPolicy": pool.spec.image.pull_policy,
        "command": ["memkv"],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "args": arguments,
        "ports": [
            {"name": "grpc", "containerPort": ports.metadata, "protocol": "TCP"},
            {"name": "metrics", "containerPort": ports.metrics, "protocol": "TCP"},
        ],
        "livenessProbe": {
            "httpGet": {"path": "/healthz", "port": "metrics"},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        # Has a map. Not: reaches the API server; an old map is better than none.
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": "metrics"},
            "periodSeconds": 2,
            "timeoutSeconds": 2,
        },
        "volumeMounts": [secret_mount(), tenants_mount()] if pool.has_tls else [],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "resources": _resources(pool),
    }


def _resources(pool: Pool) -> Manifest:
    """Return what users say over what is asked for else. Where they say a request or a limit alone,
    the other one follows it."""
    said = pool.spec.metadata_pods.resources
    asked, limited = said.get("requests", {}), said.get("limits", {})
    requests, limits = {**_REQUESTS, **asked}, {**_LIMITS, **limited}
    for name in requests.keys() & limits.keys():
        if number_of(requests[name]) > number_of(limits[name]):
            if name not in limited:
                limits[name] = requests[name]
            elif name not in asked:
                requests[name] = limits[name]
    return {"requests": requests, "limits": limits}
