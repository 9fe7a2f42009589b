"""MemKVPool as values. The CRD has checked types and defaults; what it cannot check is `plan`'s."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from memkv.metadata.kubernetes.json_values import FieldInvalid, JsonObject, JsonValue, Reader
from memkv_operator.api.drives import DriveRules, read_drive_rules
from memkv_operator.api.meta import ObjectMeta, read_meta
from memkv_operator.api.quantity import bytes_of

RDMA_DISABLED = "Disabled"
HUGE_PAGES_NONE = "None"
WORKERS_MAX = 16  # of a group, by the CRD


@dataclass(frozen=True, slots=True)
class Image:
    """Which image pods run. Empty parts are those of the operator's own image."""

    registry: str = ""
    repository: str = ""
    tag: str = ""
    digest: str = ""
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Network:
    """How data-plane pods reach the fabric."""

    mode: str = "HostNetwork"
    networks: str = ""
    """Value of the annotation of Multus."""
    claim_template: str = ""
    payload_encryption: str = "TLS"
    rdma_mode: str = "Required"
    rdma_resources: tuple[tuple[str, int], ...] = ()
    """(extended resource, count) of each rail."""
    rdma_fabric: str = "Auto"
    rdma_gid_index: int = -1
    """-1: each side looks it up."""
    rdma_traffic_class: int = 0

    @property
    def host(self) -> bool:
        """Whether pods share the node's own addresses and ports."""
        return self.mode == "HostNetwork"

    @property
    def rdma_required(self) -> bool:
        """Whether a pool without RDMA is not ready."""
        return self.rdma_mode == "Required"

    @property
    def rdma(self) -> bool:
        """Whether payload should go over RDMA."""
        return self.rdma_mode != RDMA_DISABLED


@dataclass(frozen=True, slots=True)
class FileStorage:
    """Flash as a file on the node's file system."""

    host_path: str
    size_bytes: int
    """Of each node, shared by its workers."""


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """Nodes that run one DaemonSet."""

    name: str
    node_selector: Mapping[str, str]
    memory_bytes: int
    """Of each node, shared by its workers."""
    network: Network
    huge_pages: str = HUGE_PAGES_NONE
    workers: int = 1
    weight_percent: int = 100
    file: FileStorage | None = None
    drives: DriveRules | None = None
    """Flash as whole drives, handed over by the node's agent."""
    tolerations: tuple[JsonValue, ...] = ()
    resources: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """What the user adds to requests and limits."""
    seccomp: str = "RuntimeDefault"
    """RuntimeDefault, or Localhost: the profile that the agent installs."""

    @property
    def in_memory(self) -> bool:
        """Whether it has no flash, and blocks live in memory alone."""
        return self.file is None and self.drives is None

    @property
    def survives_restarts(self) -> bool:
        """Whether a restarted pod finds the blocks that the one before had stored."""
        return self.file is not None or self.drives is not None

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Return whether a node with these labels belongs to the group."""
        return all(labels.get(key) == value for key, value in self.node_selector.items())


@dataclass(frozen=True, slots=True)
class Ports:
    """Listening ports of every role."""

    data: int = 7070
    metadata: int = 7443
    admin: int = 9470
    metrics: int = 9471


@dataclass(frozen=True, slots=True)
class Issuer:
    """Whom cert-manager has sign."""

    name: str = ""
    kind: str = "Issuer"
    group: str = "cert-manager.io"


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who a tenant is, and what it is guaranteed in the whole pool."""

    name: str
    subjects: tuple[tuple[str, str], ...] = ()
    """(namespace, name) of ServiceAccounts."""
    flash_bytes: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """Who may open connections to pods with addresses of their own."""

    enabled: bool = True
    clients: tuple[JsonValue, ...] = ()
    """Peers, as in a NetworkPolicy, that may reach data and metadata ports; none: everyone may."""
    scrapers: tuple[JsonValue, ...] = ()
    """Peers that may reach the metrics port; none: everyone may."""


@dataclass(frozen=True, slots=True)
class PodTemplate:
    """What the user adds to every pod."""

    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    priority_class: str = ""
    env: tuple[JsonValue, ...] = ()
    extra_args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MetadataPods:
    """Where the pods of the metadata service run, and what they ask for."""

    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[JsonValue, ...] = ()
    resources: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """What the user adds to requests and limits."""


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """What is wanted of a pool."""

    groups: tuple[NodeGroup, ...]
    paused: bool = False
    image: Image = Image()
    ports: Ports = Ports()
    slots: int = 4096
    failure_domain: str = "kubernetes.io/hostname"
    moving_slots_percent_max: int = 10
    move_timeout_s: int = 3600
    metadata_replicas: int = 2
    metadata_pods: MetadataPods = MetadataPods()
    tls_mode: str = "SelfSigned"
    tls_secret: str = ""
    """With mode Secret: where the certificates are."""
    issuer: Issuer = Issuer()
    """With mode CertManager."""
    auth_mode: str = "ServiceAccount"
    auth_audience: str = "memkv-metadata"
    update_type: str = "ShardRolling"
    max_unavailable: int | str = 1
    drain_timeout_s: int = 300
    drains_always: bool = False
    """Whether nodes drain before their pod is replaced even if they keep their content."""
    min_ready_s: int = 10
    pauses_on_drain_timeout: bool = False
    manages_pod_budget: bool = True
    drains_on_cordon: bool = True
    node_lost_grace_s: int = 30
    maintenance_timeout_s: int = 1800
    wipes_drives: bool = False
    tenants: tuple[Tenant, ...] = ()
    pod_template: PodTemplate = PodTemplate()
    pod_monitor: bool = False
    policy: Policy = Policy()


@dataclass(frozen=True, slots=True)
class Pool:
    """A MemKVPool."""

    meta: ObjectMeta
    spec: PoolSpec
    status: JsonObject

    @property
    def has_tls(self) -> bool:
        """Whether its parts prove themselves by certificates."""
        return self.spec.tls_mode != "Disabled"

    @property
    def key(self) -> str:
        """ "namespace/name": the pool's name everywhere in the data plane."""
        return self.meta.key


def read_pool(manifest: JsonObject) -> Pool:
    """Return a pool. FieldInvalid for a spec that this version does not understand."""
    reader = Reader(manifest)
    meta = read_meta(reader)
    return Pool(meta, _spec(reader.object("spec")), reader.object("status").value)


def _spec(spec: Reader) -> PoolSpec:
    shared = _network(spec.object("network")) if spec.has("network") else None
    sharding, update = spec.object("sharding"), spec.object("updateStrategy")
    metadata, disruption = spec.object("metadata"), spec.object("disruption")
    return PoolSpec(
        groups=tuple(_group(group, shared) for group in spec.objects("nodeGroups")),
        paused=spec.flag("paused"),
        image=_image(spec),
        ports=_ports(spec.object("ports")),
        slots=sharding.integer("slots", 4096),
        failure_domain=sharding.text("failureDomain", "kubernetes.io/hostname"),
        moving_slots_percent_max=sharding.integer("maxMovingSlotsPercent", 10),
        move_timeout_s=sharding.integer("moveTimeoutSeconds", 3600),
        metadata_replicas=metadata.integer("replicas", 2),
        metadata_pods=MetadataPods(
            metadata.text_map("nodeSelector"),
            tuple(metadata.raw_list("tolerations")),
            _resources(metadata.object("resources")),
        ),
        tls_mode=metadata.object("tls").text("mode", "SelfSigned"),
        tls_secret=metadata.object("tls").text("secretName"),
        issuer=_issuer(metadata.object("tls").object("issuerRef")),
        auth_mode=metadata.object("auth").text("mode", "ServiceAccount"),
        auth_audience=metadata.object("auth").text("audience", "memkv-metadata"),
        update_type=update.text("type", "ShardRolling"),
        max_unavailable=update.amount("maxUnavailable", 1),
        drain_timeout_s=update.integer("drainTimeoutSeconds", 300),
        drains_always=update.text("drain", "WhenContentIsLost") == "Always",
        min_ready_s=update.integer("minReadySeconds", 10),
        pauses_on_drain_timeout=update.text("onDrainTimeout", "Proceed") == "Pause",
        manages_pod_budget=disruption.flag("managePodBudget", True),
        drains_on_cordon=disruption.flag("drainOnCordon", True),
        node_lost_grace_s=disruption.integer("nodeLostGraceSeconds", 30),
        maintenance_timeout_s=disruption.integer("maintenanceTimeoutSeconds", 1800),
        wipes_drives=spec.object("deletionPolicy").text("drives", "Retain") == "Wipe",
        tenants=tuple(_tenant(tenant) for tenant in spec.objects("tenants")),
        pod_template=_pod_template(spec.object("podTemplate")),
        pod_monitor=spec.object("monitoring").flag("podMonitor"),
        policy=_policy(spec.object("networkPolicy")),
    )


def _image(spec: Reader) -> Image:
    image = spec.object("image")
    return Image(
        image.text("registry"),
        image.text("repository"),
        image.text("tag"),
        image.text("digest"),
        image.text("pullPolicy", "IfNotPresent"),
        tuple(secret.text("name") for secret in spec.objects("imagePullSecrets")),
    )


def _ports(ports: Reader) -> Ports:
    return Ports(
        ports.integer("data", 7070),
        ports.integer("metadata", 7443),
        ports.integer("admin", 9470),
        ports.integer("metrics", 9471),
    )


def _network(network: Reader) -> Network:
    rdma = network.object("rdma")
    return Network(
        network.text("mode", "HostNetwork"),
        network.text("networks"),
        network.text("resourceClaimTemplateName"),
        network.text("payloadEncryption", "TLS"),
        rdma.text("mode", "Required"),
        tuple((r.text("name"), r.integer("count", 1)) for r in rdma.objects("resources")),
        rdma.text("fabric", "Auto"),
        rdma.integer("gidIndex", -1),
        rdma.integer("trafficClass"),
    )


def _group(group: Reader, shared: Network | None) -> NodeGroup:
    network = _network(group.object("network")) if group.has("network") else shared
    if network is None:
        raise FieldInvalid(f"{group.place('network')} is missing, and there is no spec.network")
    memory, storage = group.object("memory"), group.object("storage")
    file = storage.object("file")
    return NodeGroup(
        name=group.text("name"),
        node_selector=group.text_map("nodeSelector"),
        memory_bytes=bytes_of(memory.amount("size"), memory.place("size")),
        network=network,
        huge_pages=memory.text("hugePages", HUGE_PAGES_NONE),
        workers=group.integer("workers", 1),
        weight_percent=group.integer("weightPercent", 100),
        file=FileStorage(file.text("hostPath"), bytes_of(file.amount("size"), file.place("size")))
        if storage.has("file")
        else None,
        drives=read_drive_rules(storage),
        tolerations=tuple(group.raw_list("tolerations")),
        seccomp=group.text("seccompProfile", "RuntimeDefault"),
        resources=_resources(group.object("resources")),
    )


def _resources(resources: Reader) -> dict[str, dict[str, str]]:
    return {
        kind: {name: _quantity(value, name) for name in value.value}
        for kind in ("requests", "limits")
        if (value := resources.object(kind)).value
    }


def _quantity(amounts: Reader, name: str) -> str:
    """Return it as it was written, once it is known to be one."""
    amount = amounts.amount(name)
    bytes_of(amount, amounts.place(name))
    return str(amount)


def _issuer(issuer: Reader) -> Issuer:
    return Issuer(
        issuer.text("name"),
        issuer.text("kind", "Issuer"),
        issuer.text("group", "cert-manager.io"),
    )


def _tenant(tenant: Reader) -> Tenant:
    return Tenant(
        tenant.text("name"),
        tuple((s.text("namespace"), s.text("name")) for s in tenant.objects("subjects")),
        bytes_of(tenant.amount("flashQuota"), tenant.place("flashQuota")),
        bytes_of(tenant.amount("memoryQuota"), tenant.place("memoryQuota")),
    )


def _policy(policy: Reader) -> Policy:
    return Policy(
        policy.flag("enabled", True),
        tuple(policy.raw_list("from")),
        tuple(policy.raw_list("metricsFrom")),
    )


def _pod_template(template: Reader) -> PodTemplate:
    return PodTemplate(
        template.text_map("labels"),
        template.text_map("annotations"),
        template.text("priorityClassName"),
        tuple(template.raw_list("env")),
        template.texts("extraArgs"),
    )
