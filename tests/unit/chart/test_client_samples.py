"""Samples of client pods: what a pool asks of its clients, and Pod Security."""

import importlib
import json
from pathlib import Path
from typing import cast

import pytest

from memkv_operator.testing import engine_pods
from memkv_operator.testing.crds import Object, child, objects, read_all_yaml, read_yaml

SAMPLES = Path(__file__).resolve().parents[3] / "deploy/samples"
CLIENTS = sorted((SAMPLES / "clients").glob("*.yaml"))
RESTRICTED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
    "projected", "secret",
}  # fmt: skip


def of_kind(manifests: list[Object], *kinds: str) -> Object:
    (found,) = (manifest for manifest in manifests if manifest["kind"] in kinds)
    return found


def pod_of(manifests: list[Object]) -> Object:
    return child(of_kind(manifests, "Job", "Deployment"), "spec", "template", "spec")


def breaches_of_restricted(pod: Object) -> list[str]:
    """Return what the Pod Security standard `restricted` refuses in a pod."""
    found = []
    security = child(pod, "securityContext")
    if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
        found.append("may run as root")
    if child(security, "seccompProfile").get("type") != "RuntimeDefault":
        found.append("no seccomp profile")
    found += [name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    for volume in objects(pod, "volumes"):
        found += sorted(volume.keys() - {"name"} - RESTRICTED_VOLUMES)
    for container in objects(pod, "containers"):
        security = child(container, "securityContext")
        if security.get("allowPrivilegeEscalation") is not False:
            found.append("allowPrivilegeEscalation")
        if child(security, "capabilities") != {"drop": ["ALL"]}:
            found.append("capabilities")
    return found


@pytest.mark.parametrize("path", CLIENTS, ids=lambda path: path.stem)
def test_samples_give_clients_what_a_pool_asks_for(path: Path) -> None:
    pools = {str(child(read_yaml(sample), "metadata")["name"]) for sample in SAMPLES.glob("*.yaml")}
    manifests = read_all_yaml(path)
    role = of_kind(manifests, "Role")
    ((pool,),) = (cast(list[str], rule["resourceNames"]) for rule in objects(role, "rules"))
    assert pool in pools
    pod = pod_of(manifests)
    account = of_kind(manifests, "ServiceAccount")["metadata"]
    assert child({"metadata": account}, "metadata")["name"] == pod["serviceAccountName"]
    binding = of_kind(manifests, "RoleBinding")
    assert child(binding, "roleRef")["name"] == child(role, "metadata")["name"]
    assert [s["name"] for s in objects(binding, "subjects")] == [pod["serviceAccountName"]]
    assert pod["automountServiceAccountToken"] is False
    volumes = {str(volume["name"]): volume for volume in objects(pod, "volumes")}
    assert child(volumes["connection"], "configMap")["name"] == f"{pool}-connection"
    (source,) = objects(child(volumes["token"], "projected"), "sources")
    assert source["serviceAccountToken"] == {"path": "token", "audience": "memkv-metadata"}
    (container,) = objects(pod, "containers")
    mounts = {str(m["name"]): m for m in objects(container, "volumeMounts")}
    assert mounts["connection"] == {"name": "connection", "mountPath": "/etc/memkv"}
    assert mounts["token"]["mountPath"] == "/var/run/secrets/memkv"


@pytest.mark.parametrize("name", ["engine", "vllm"])
def test_samples_that_say_so_are_restricted(name: str) -> None:
    assert breaches_of_restricted(pod_of(read_all_yaml(SAMPLES / f"clients/{name}.yaml"))) == []
    rdma = breaches_of_restricted(pod_of(read_all_yaml(SAMPLES / "clients/engine-rdma.yaml")))
    assert {"may run as root", "hostNetwork", "capabilities"} <= set(rdma)


def test_engines_of_the_sample_load_the_connector_and_hash_alike() -> None:
    pod = pod_of(read_all_yaml(engine_pods.SAMPLE))
    (container,) = objects(pod, "containers")
    environment = {str(e["name"]): e["value"] for e in objects(container, "env")}
    assert environment["PYTHONHASHSEED"] == "0"
    assert pod["enableServiceLinks"] is False  # or a Service called vllm sets VLLM_PORT
    assert not any(name.startswith("MEMKV_") for name in environment)
    (given,) = (
        word.partition("=")[2] for word in cast(list[str], container["command"])
        if word.startswith("--kv-transfer-config=")
    )  # fmt: skip
    config: Object = json.loads(given)
    module = importlib.import_module(str(config["kv_connector_module_path"]))
    assert config["kv_connector"] in module.__all__
    assert config["kv_load_failure_policy"] == "recompute"
    assert "kv_connector_extra_config" not in config  # pool and endpoint: the connection file


def test_engines_of_the_cluster_test_are_the_sample_and_as_restricted() -> None:
    manifests = engine_pods.engines("pool-x", "memkv:1")
    assert engine_pods.SAMPLE_POOL not in json.dumps(manifests)
    pod = pod_of(manifests)
    assert breaches_of_restricted(pod) == []
    (container,) = objects(pod, "containers")
    assert container["image"] == "memkv:1"
    assert "nvidia.com/gpu" not in json.dumps(container)
    rights = engine_pods.rights("pool-x", "engines")
    assert [right["kind"] for right in rights] == ["Role", "RoleBinding"]
    assert [s["namespace"] for s in objects(rights[1], "subjects")] == ["engines"]
