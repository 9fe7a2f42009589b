"""What nodes and clients are told of RDMA."""

from memkv.metadata.kubernetes.json_values import JsonValue
from memkv_operator.api.pool import Network, Pool

FABRICS = {"Auto": "auto", "RoCEv2": "rocev2", "InfiniBand": "infiniband"}


def rdma_flags(network: Network) -> list[JsonValue]:
    """Return the arguments of a data-plane pod. What is not said is left to the node."""
    if not network.rdma:
        return ["--rdma=off"]
    said = {name.replace("_", "-"): value for name, value in _settings(network).items()}
    return ["--rdma=on", *(f"--{name}={value}" for name, value in said.items())]


def rdma_of_clients(pool: Pool) -> dict[str, str | int]:
    """Return what the connection file says. Clients speak one way to all nodes of a pool, so what
    its groups say differently is left to them."""
    asking = [group.network for group in pool.spec.groups if group.network.rdma]
    if not asking:
        return {"rdma": "off"}
    first, *others = (_settings(network) for network in asking)
    common = {k: v for k, v in first.items() if all(other.get(k) == v for other in others)}
    return {"rdma": "on", **common}


def _settings(network: Network) -> dict[str, str | int]:
    settings: dict[str, str | int] = {}
    if network.rdma_fabric != "Auto":
        settings["rdma_fabric"] = FABRICS[network.rdma_fabric]
    if network.rdma_gid_index >= 0:
        settings["rdma_gid_index"] = network.rdma_gid_index
    if network.rdma_traffic_class:
        settings["rdma_traffic_class"] = network.rdma_traffic_class
    return settings
