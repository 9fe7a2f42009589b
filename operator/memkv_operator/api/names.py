"""Names that users, the chart, the data plane and the operator agree on."""

from dataclasses import dataclass
from hashlib import sha256

GROUP = "memkv.io"
VERSION = "v1alpha1"

FIELD_MANAGER = "memkv-operator"
FINALIZER = f"{GROUP}/pool-protection"

LABEL_POOL = f"{GROUP}/pool"
LABEL_NODE_GROUP = f"{GROUP}/node-group"
LABEL_NAME = "app.kubernetes.io/name"
LABEL_INSTANCE = "app.kubernetes.io/instance"
LABEL_COMPONENT = "app.kubernetes.io/component"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_PART_OF = "app.kubernetes.io/part-of"

SPEC_HASH = f"{GROUP}/spec-hash"
"""Annotation of every child: what the operator last applied, so that it can tell drift."""
TEMPLATE_HASH = f"{GROUP}/template-hash"
"""Annotation of data-plane pods: the template they were made from."""
ACCEPT_MASS_LOSS = f"{GROUP}/accept-mass-loss"
"""Annotation a person puts on a pool: the missing nodes are gone for good."""
ROTATE_CA = f"{GROUP}/rotate-ca"
"""Annotation a person puts on a pool: replace its authority once for each new value."""
ROTATE_TICKET_KEY = f"{GROUP}/rotate-ticket-key"
"""Annotation a person puts on a pool: replace the key of its tickets once for each new value."""
REVOKE_TICKET_KEY = f"{GROUP}/revoke-ticket-key"
"""Annotation a person puts on a pool: replace it once for each new value, and refuse tickets of all
keys before from now on."""
SAFE_TO_REBOOT = f"{GROUP}/safe-to-reboot"
"""Annotation of Nodes that are being emptied: "true" once no pool needs the node any more."""

COMPONENT_NODE = "node"
COMPONENT_METADATA = "metadata"
COMPONENT_AGENT = "agent"
COMPONENT_OPERATOR = "operator"
LABEL_NAMESPACE = "kubernetes.io/metadata.name"
"""Label that every namespace carries: its own name."""
AGENT_SELECTOR = f"{LABEL_COMPONENT}={COMPONENT_AGENT},{LABEL_PART_OF}=memkv"
"""Finds the agents' pods in the operator's own namespace."""
AGENT_PORT = "admin"
"""Name of the port of their container that serves AgentAdmin."""
AGENT_PORT_DEFAULT = 9472
AGENTS_IDENTITY = "memkv-agents-identity"
"""Secret in the operator's own namespace that agents mount: their certificate, and their CA's."""
AGENTS_AUTHORITY = "memkv-agents-authority"
"""Secret in the operator's own namespace that no pod mounts: the agents' CA with its key."""


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind, and where the API server serves it."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """What `apiVersion` of its objects says."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Return the path of a collection or object; no namespace: those of all namespaces."""
        parts = ["/apis" if self.group else "/api", self.api_version]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/".join(parts)


POOLS = Resource(GROUP, VERSION, "memkvpools", "MemKVPool")
MEMKV_NODES = Resource(GROUP, VERSION, "memkvnodes", "MemKVNode")
SHARD_MAPS = Resource(GROUP, VERSION, "memkvshardmaps", "MemKVShardMap")
NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
PODS = Resource("", "v1", "pods", "Pod")
SERVICES = Resource("", "v1", "services", "Service")
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
SECRETS = Resource("", "v1", "secrets", "Secret")
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount")
DAEMON_SETS = Resource("apps", "v1", "daemonsets", "DaemonSet")
DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
ROLES = Resource("rbac.authorization.k8s.io", "v1", "roles", "Role")
ROLE_BINDINGS = Resource("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding")
POD_BUDGETS = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
NETWORK_POLICIES = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
NODE_LEASES_NAMESPACE = "kube-node-lease"
"""Where kubelets keep the Leases that say they live."""
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
EVENTS = Resource("events.k8s.io", "v1", "events", "Event")
CLUSTER_ROLE_BINDINGS = Resource(
    "rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False
)
CERTIFICATES = Resource("cert-manager.io", "v1", "certificates", "Certificate")
POD_MONITORS = Resource("monitoring.coreos.com", "v1", "podmonitors", "PodMonitor")

CHILDREN = (
    SERVICE_ACCOUNTS,
    ROLES,
    ROLE_BINDINGS,
    CONFIG_MAPS,
    SERVICES,
    DEPLOYMENTS,
    DAEMON_SETS,
    POD_BUDGETS,
    NETWORK_POLICIES,
)
"""Kinds that are rendered from a pool, in the order in which they are made."""
BY_KIND = {
    resource.kind: resource
    for resource in (*CHILDREN, CERTIFICATES, POD_MONITORS, POOLS, MEMKV_NODES, SHARD_MAPS)
}


def daemon_set_name(pool: str, group: str) -> str:
    """Return the name of a node group's DaemonSet."""
    return f"{pool}-{group}"


def metadata_name(pool: str) -> str:
    """Return the name of everything of the metadata service."""
    return f"{pool}-metadata"


def connection_name(pool: str) -> str:
    """Return the name of the ConfigMap that clients mount."""
    return f"{pool}-connection"


def identity_name(pool: str) -> str:
    """Return the name of the operator's own Secret of a pool."""
    return f"{pool}-identity"


def node_secret_name(pool: str) -> str:
    """Return the name of the Secret that data-plane pods mount."""
    return f"{pool}-node-identity"


def node_account_name(pool: str) -> str:
    """Return the name of the ServiceAccount of data-plane pods."""
    return f"{pool}-node"


def metadata_secret_name(pool: str) -> str:
    """Return the name of the Secret that metadata pods mount."""
    return f"{pool}-metadata-identity"


def certificate_name(pool: str, role: str) -> str:
    """Return the name of a role's Certificate (cert-manager), and of the Secret that it fills."""
    return f"{pool}-{role}-tls"


def memkv_node_name(pool: str, node_name: str) -> str:
    """Return the name of a pool's MemKVNode for a node of the cluster."""
    return f"{pool}-{sha256(node_name.encode()).hexdigest()[:8]}"


def drive_resource(group: str, pool_uid: str) -> str:
    """Return the extended resource that is the drives of a group on a node."""
    return f"drives.{GROUP}/{group}-{pool_uid[:8]}"


def pool_labels(pool: str, component: str) -> dict[str, str]:
    """Return the labels of a child."""
    return {
        LABEL_NAME: "memkv",
        LABEL_INSTANCE: pool,
        LABEL_COMPONENT: component,
        LABEL_MANAGED_BY: FIELD_MANAGER,
        LABEL_PART_OF: "memkv",
        LABEL_POOL: pool,
    }
