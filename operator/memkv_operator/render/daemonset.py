"""The DaemonSet of a node group: one data-plane pod on each of its nodes."""

from collections.abc import Mapping

from memkv.metadata.kubernetes.json_values import JsonObject, JsonValue, Manifest, Reader
from memkv_operator.api.meta import child_meta
from memkv_operator.api.names import (
    COMPONENT_NODE,
    DAEMON_SETS,
    LABEL_COMPONENT,
    LABEL_NODE_GROUP,
    LABEL_POOL,
    POOLS,
    TEMPLATE_HASH,
    daemon_set_name,
    node_account_name,
    node_secret_name,
    pool_labels,
)
from memkv_operator.api.pool import HUGE_PAGES_NONE, NodeGroup, Pool
from memkv_operator.render.digest import digest_of
from memkv_operator.render.endpoints import metadata_endpoint
from memkv_operator.render.identity import (
    BY_OWNER,
    asks_tokens,
    node_flags,
    secret_mount,
    secret_volume,
    token_mount,
    token_volume,
)
from memkv_operator.render.image import image_reference
from memkv_operator.render.memory_store import (
    DIRECTORY,
    file_bytes,
    flight_bytes,
    memory_mount,
    memory_volume,
)
from memkv_operator.render.rdma import rdma_flags
from memkv_operator.render.resources import resources_of
from memkv_operator.render.storage import state_path

STATE_DIR = "/var/lib/memkv"
CONTAINER = "memkv-node"
SECCOMP_PROFILE = "memkv/data-plane.json"  # below kubelet's seccomp directory; the agent's work
GRACE_S = 60  # a supervisor gives its workers 35 s to close their stores
LIVENESS_FAILURES = 6  # a minute: a starved node is slow, not dead
READINESS_PERIOD_S = 2


def daemon_set(pool: Pool, group: NodeGroup, own_image: str) -> Manifest:
    """Return the DaemonSet of a group."""
    labels = {**pool_labels(pool.meta.name, COMPONENT_NODE), LABEL_NODE_GROUP: group.name}
    chosen = {key: labels[key] for key in (LABEL_COMPONENT, LABEL_POOL, LABEL_NODE_GROUP)}
    template = _template(pool, group, labels, own_image)
    return {
        "apiVersion": DAEMON_SETS.api_version,
        "kind": DAEMON_SETS.kind,
        "metadata": child_meta(
            POOLS, pool.meta, daemon_set_name(pool.meta.name, group.name), labels
        ),
        "spec": {
            "selector": {"matchLabels": chosen},
            # Pods are replaced one by one by the operator, which knows what a node serves.
            "updateStrategy": {"type": "OnDelete"},
            "minReadySeconds": pool.spec.min_ready_s,
            "template": template,
        },
    }


def template_hash(manifest: Manifest) -> str:
    """Return the hash that pods of a rendered DaemonSet carry."""
    spec = manifest["spec"]
    assert isinstance(spec, Mapping)
    template = spec["template"]
    assert isinstance(template, Mapping)
    meta = template["metadata"]
    assert isinstance(meta, Mapping)
    annotations = meta["annotations"]
    assert isinstance(annotations, Mapping)
    return str(annotations[TEMPLATE_HASH])


def made_template(live: JsonObject) -> str:
    """Return the hash of the template that a DaemonSet of the cluster has, "" for none."""
    meta = Reader(live).object("spec").object("template").object("metadata")
    return meta.text_map("annotations").get(TEMPLATE_HASH, "")


def _template(pool: Pool, group: NodeGroup, labels: Mapping[str, str], own_image: str) -> Manifest:
    extra = pool.spec.pod_template
    annotations: dict[str, JsonValue] = dict(extra.annotations)
    if group.network.mode == "Multus":
        annotations["k8s.v1.cni.cncf.io/networks"] = group.network.networks
    spec = _pod_spec(pool, group, own_image)
    meta: Manifest = {"labels": {**extra.labels, **labels}, "annotations": annotations}
    annotations[TEMPLATE_HASH] = digest_of({"metadata": meta, "spec": spec})
    return {"metadata": meta, "spec": spec}


def _pod_spec(pool: Pool, group: NodeGroup, own_image: str) -> Manifest:
    image, extra = pool.spec.image, pool.spec.pod_template
    spec: Manifest = {
        "serviceAccountName": node_account_name(pool.meta.name),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_S,
        "nodeSelector": {"kubernetes.io/os": "linux", **group.node_selector},
        "tolerations": [*_TOLERATIONS, *group.tolerations],
        "securityContext": {"seccompProfile": _seccomp_profile(group)},
        "containers": [_container(pool, group, own_image)],
        "volumes": _volumes(pool, group),
    }
    if group.network.host:
        spec["hostNetwork"] = True
        spec["dnsPolicy"] = "ClusterFirstWithHostNet"
    if group.network.mode == "DRA":
        spec["resourceClaims"] = [
            {"name": "rdma", "resourceClaimTemplateName": group.network.claim_template}
        ]
    if image.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in image.pull_secrets]
    if extra.priority_class:
        spec["priorityClassName"] = extra.priority_class
    return spec


# DaemonSet pods stay where they are when a node is cordoned or silent: their content is there.
_TOLERATIONS: tuple[JsonValue, ...] = (
    {"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule"},
)


def _seccomp_profile(group: NodeGroup) -> Manifest:
    if group.seccomp == "Localhost":
        return {"type": "Localhost", "localhostProfile": SECCOMP_PROFILE}
    return {"type": group.seccomp}


def _container(pool: Pool, group: NodeGroup, own_image: str) -> Manifest:
    ports = pool.spec.ports
    container: Manifest = {
        "name": CONTAINER,
        "image": image_reference(pool.spec.image, own_image),
        "imagePullPolicy": pool.spec.image.pull_policy,
        "command": ["memkv"],
        # The last lines of a log that ends in an error become the message of the pod.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "args": _arguments(pool, group),
        "env": [
            _from_field("NODE_NAME", "spec.nodeName"),
            _from_field("POD_IP", "status.podIP"),
            *pool.spec.pod_template.env,
        ],
        "ports": [
            *(
                _port(f"data-{worker}" if worker else "data", ports.data + worker)
                for worker in range(group.workers)
            ),
            _port("admin", ports.admin),
            _port("metrics", ports.metrics),
        ],
        "livenessProbe": {
            "httpGet": {"path": "/healthz", "port": "metrics"},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": LIVENESS_FAILURES,
        },
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": "metrics"},
            "periodSeconds": READINESS_PERIOD_S,
            "timeoutSeconds": 2,
            "failureThreshold": 3,
        },
        # uid 0, or IPC_LOCK means nothing: Kubernetes knows no ambient capabilities.
        "securityContext": {
            "runAsUser": 0,
            "privileged": False,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]},
        },
        "resources": resources_of(pool, group),
        "volumeMounts": [
            {"name": "state", "mountPath": STATE_DIR},
            *([memory_mount()] if group.in_memory else []),
            *([secret_mount()] if pool.has_tls else []),
            *([token_mount()] if asks_tokens(pool) else []),
        ],
    }
    return container


def _arguments(pool: Pool, group: NodeGroup) -> list[JsonValue]:
    ports, workers = pool.spec.ports, group.workers
    size_bytes = group.file.size_bytes if group.file is not None else 0
    directory, memory_bytes = STATE_DIR, group.memory_bytes // workers
    if group.in_memory:
        directory, memory_bytes = DIRECTORY, flight_bytes(group)
        size_bytes = workers * file_bytes(group)
    # No file is ever made in place of a drive: of size 0 it is an error.
    storage = {"capacity": str(size_bytes // workers)}
    if group.drives is None:
        files = ",".join(f"{directory}/flash-{worker}.data" for worker in range(workers))
        storage = {"drives": files, **storage}
    # Whole drives come from the agent, by MEMKV_NODE_DRIVES: a worker for each that there is.
    flags = {
        "name": "$(NODE_NAME)",
        "pool": pool.key,
        "dir": STATE_DIR,
        **storage,
        "memory": str(memory_bytes),
        **({} if group.huge_pages == HUGE_PAGES_NONE else {"huge-pages": group.huge_pages}),
        "metadata": metadata_endpoint(pool),
        "host": "$(POD_IP)",
        "data-port": str(ports.data),
        "admin-port": str(ports.admin),
        "http-port": str(ports.metrics),
        "slots": str(pool.spec.slots),
    }
    return [
        "node",
        *(f"--{name}={value}" for name, value in flags.items()),
        *rdma_flags(group.network),
        *node_flags(pool, group.network.payload_encryption),
        *pool.spec.pod_template.extra_args,
    ]


def _volumes(pool: Pool, group: NodeGroup) -> list[JsonValue]:
    state: Manifest = {"name": "state", "emptyDir": {}}
    if path := state_path(pool, group):
        state = {"name": "state", "hostPath": {"path": path, "type": "DirectoryOrCreate"}}
    return [
        state,
        *([memory_volume(group)] if group.in_memory else []),
        *([secret_volume(node_secret_name(pool.meta.name), BY_OWNER)] if pool.has_tls else []),
        *([token_volume(pool)] if asks_tokens(pool) else []),
    ]


def _port(name: str, number: int) -> Manifest:
    return {"name": name, "containerPort": number, "protocol": "TCP"}


def _from_field(name: str, path: str) -> Manifest:
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}
