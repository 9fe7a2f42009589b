"""Manifests are what the golden files show; `MEMKV_WRITE_GOLDEN=1` writes them anew.

Whoever changes a manifest changes what runs in people's clusters: the difference shows in review.
"""

import os
import re
from pathlib import Path
from typing import cast

import pytest
import yaml

from memkv.agent.plugin import VARIABLE
from memkv.metadata.kubernetes.json_values import JsonObject, JsonValue
from memkv_operator.api.names import DAEMON_SETS, DEPLOYMENTS, SPEC_HASH, TEMPLATE_HASH
from memkv_operator.api.pool import Image, read_pool
from memkv_operator.render.children import Child, children_of
from memkv_operator.render.image import image_reference
from memkv_operator.testing.crds import Object, child, objects, read_yaml, rules_of

GOLDEN = Path(__file__).resolve().parents[2] / "golden/operator"
OWN_IMAGE = "registry.example/memkv/memkv:1.2.3"

POOLS: dict[str, JsonObject] = {
    "tcp-file": {
        "nodeGroups": [
            {
                "name": "flash",
                "nodeSelector": {"memkv.io/node": "true"},
                "memory": {"size": "1Gi"},
                "storage": {"file": {"hostPath": "/var/lib/memkv/pool-a", "size": "20Gi"}},
            }
        ],
        "network": {
            "mode": "PodNetwork", "payloadEncryption": "None", "rdma": {"mode": "Disabled"},
        },
        "metadata": {"replicas": 1, "tls": {"mode": "Disabled"}, "auth": {"mode": "None"}},
    },
    "tls": {
        "nodeGroups": [
            {
                "name": "flash",
                "nodeSelector": {"memkv.io/node": "true"},
                "memory": {"size": "1Gi"},
                "storage": {"file": {"hostPath": "/data", "size": "20Gi"}},
            }
        ],
        "network": {"mode": "PodNetwork", "rdma": {"mode": "Disabled"}},
        "tenants": [{"name": "chat", "subjects": [{"namespace": "team-a", "name": "vllm"}]}],
    },
    "drives": {
        "nodeGroups": [
            {
                "name": "nvme",
                "nodeSelector": {"memkv.io/node": "nvme"},
                "workers": 4,
                "memory": {"size": "8Gi"},
                "storage": {"deviceSelector": {"minSize": "1Ti"}},
            },
            {
                "name": "named",
                "nodeSelector": {"memkv.io/node": "named"},
                "memory": {"size": "8Gi"},
                "storage": {"devicePaths": ["/dev/disk/by-id/nvme-X_1"], "initPolicy": "IfBlank"},
            },
        ],
        "network": {"rdma": {"mode": "Disabled"}},
    },
    "rdma-host": {
        "image": {"repository": "mirror/memkv", "digest": f"sha256:{'a' * 64}"},
        "imagePullSecrets": [{"name": "pull"}],
        "nodeGroups": [
            {
                "name": "x86",
                "nodeSelector": {"memkv.io/node": "x86"},
                "tolerations": [{"key": "storage", "operator": "Exists"}],
                "workers": 2,
                "memory": {"size": "64Gi", "hugePages": "2Mi"},
                "storage": {"file": {"hostPath": "/data", "size": "1Ti"}},
                "resources": {"requests": {"cpu": 8}, "limits": {"cpu": "8"}},
            },
            {
                "name": "dpu",
                "nodeSelector": {"memkv.io/node": "dpu"},
                "memory": {"size": "8Gi"},
                "storage": {"file": {"hostPath": "/data", "size": "1Ti"}},
                "network": {
                    "mode": "DRA", "resourceClaimTemplateName": "rails", "rdma": {},
                },
            },
        ],
        "network": {
            "rdma": {
                "mode": "Preferred", "resources": [{"name": "rdma/rail0", "count": 1}],
                "fabric": "RoCEv2", "gidIndex": 3, "trafficClass": 106,
            },
        },
        "podTemplate": {
            "labels": {"team": "inference"}, "annotations": {"note": "x"},
            "priorityClassName": "system-node-critical",
            "env": [{"name": "MEMKV_LOG_LEVEL", "value": "debug"}], "extraArgs": ["--insecure"],
        },
        "metadata": {
            "nodeSelector": {"pool": "system"},
            "tolerations": [{"key": "system", "operator": "Exists"}],
            "resources": {"requests": {"memory": "1Gi"}, "limits": {"cpu": 1}},
        },
        "ports": {"data": 7170, "metadata": 7543, "admin": 9570, "metrics": 9571},
    },
}  # fmt: skip


SAMPLES = Path(__file__).resolve().parents[3] / "deploy/samples"
for sample in ("bare-metal-rdma", "cloud", "bluefield-dpu", "kind"):
    POOLS[f"sample-{sample}"] = yaml.safe_load((SAMPLES / f"{sample}.yaml").read_text())["spec"]
POOLS["memory-only-localhost"] = {
    **POOLS["tcp-file"],
    "nodeGroups": [
        {
            "name": "memory", "nodeSelector": {"memkv.io/node": "true"}, "workers": 2,
            "memory": {"size": "8Gi"}, "seccompProfile": "Localhost",
        }
    ],
    "network": {
        "mode": "Multus", "networks": "memkv/rail0, memkv/rail1", "payloadEncryption": "None",
        "rdma": {
            "mode": "Preferred",
            "resources": [{"name": "nvidia.com/rdma_rail0"}, {"name": "nvidia.com/rdma_rail1"}],
            "fabric": "InfiniBand", "gidIndex": 0, "trafficClass": 0,
        },
    },
}  # fmt: skip


def children(spec: JsonObject) -> list[Child]:
    meta: JsonObject = {"name": "pool-a", "namespace": "inference", "uid": "uid-of-pool"}
    return children_of(
        read_pool({"metadata": meta, "spec": spec}),
        OWN_IMAGE,
        authority="CA in PEM",
        operator_namespace="memkv-system",
    )


@pytest.mark.parametrize("name", POOLS)
def test_manifests_are_the_golden_ones(name: str) -> None:
    text = yaml.safe_dump_all(
        [child.manifest for child in children(POOLS[name])], sort_keys=True, width=100
    )
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("MEMKV_WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_hashes_change_with_what_they_cover_only() -> None:
    spec = POOLS["tcp-file"]
    before = {child.key: child for child in children(spec)}
    after = {child.key: child for child in children({**spec, "metadata": {
        "replicas": 3, "tls": {"mode": "Disabled"}, "auth": {"mode": "None"},
    }})}  # fmt: skip
    changed = {key for key in before if before[key].spec_hash != after[key].spec_hash}
    assert changed == {("Deployment", "pool-a-metadata")}
    for changed_child in after.values():
        meta = changed_child.manifest["metadata"]
        assert isinstance(meta, dict)
        assert meta["annotations"][SPEC_HASH] == changed_child.spec_hash


@pytest.mark.parametrize("mode", ["ServiceAccount", "MTLS"])
def test_nodes_prove_themselves_as_the_metadata_service_asks(mode: str) -> None:
    """Where tokens prove callers it asks for no certificate, so nodes need a token too."""
    made = children({**POOLS["tls"], "metadata": {"auth": {"mode": mode}}})
    pods = {
        child_.resource: child(cast(Object, child_.manifest), "spec", "template", "spec")
        for child_ in made
        if child_.resource in (DAEMON_SETS, DEPLOYMENTS)
    }
    node, metadata = pods[DAEMON_SETS], pods[DEPLOYMENTS]
    assert node["automountServiceAccountToken"] is False
    tokens = [volume for volume in objects(node, "volumes") if volume["name"] == "token"]
    (own,), (other,) = objects(node, "containers"), objects(metadata, "containers")
    with_token = [arg for arg in cast(list[str], own["args"]) if arg.startswith("--token-file=")]
    account = f"--node-accounts=inference/{node['serviceAccountName']}"
    named = [arg for arg in cast(list[str], other["args"]) if arg == account]
    assert len(tokens) == len(with_token) == len(named) == (mode == "ServiceAccount")


@pytest.mark.parametrize("name", POOLS)
def test_keys_in_pods_are_for_the_process_of_the_pod_alone(name: str) -> None:
    """Kubelet writes them as root; a group reads them only where kubelet gives it the files."""
    found = 0
    for child_ in children(POOLS[name]):
        if child_.resource not in (DAEMON_SETS, DEPLOYMENTS):
            continue
        pod = child(cast(Object, child_.manifest), "spec", "template", "spec")
        (container,) = objects(pod, "containers")
        user = {**child(pod, "securityContext"), **child(container, "securityContext")}["runAsUser"]
        group = child(pod, "securityContext").get("fsGroup")
        for volume in objects(pod, "volumes"):
            for source in (volume.get("secret"), volume.get("projected")):
                if source is not None:
                    found += 1
                    mode = cast(Object, source)["defaultMode"]
                    assert mode == (0o400 if user == 0 else 0o440), volume["name"]
                    assert user == 0 or group == user, volume["name"]
    plain = "memory-only-localhost", "sample-kind", "tcp-file"
    assert (found > 0) == (name not in plain)


def test_a_new_image_is_a_new_template() -> None:
    def template(own_image: str) -> object:
        meta = {"name": "pool-a", "namespace": "inference", "uid": "u"}
        pool = read_pool({"metadata": meta, "spec": POOLS["tcp-file"]})
        made = children_of(pool, own_image)
        spec = next(c.manifest["spec"] for c in made if c.resource is DAEMON_SETS)
        assert isinstance(spec, dict)
        return spec["template"]["metadata"]["annotations"][TEMPLATE_HASH]

    assert template("memkv:1") == template("memkv:1") != template("memkv:2")


@pytest.mark.parametrize(
    ("image", "own", "expected"),
    [
        (Image(), "memkv:1", "memkv:1"),
        (Image(), "ghcr.io/memkv/memkv:1", "ghcr.io/memkv/memkv:1"),
        (Image(registry="r:5000"), "ghcr.io/memkv/memkv:1", "r:5000/memkv/memkv:1"),
        (Image(repository="a/b"), "ghcr.io/memkv/memkv:1", "ghcr.io/a/b:1"),
        (Image(tag="2"), "localhost/memkv:1", "localhost/memkv:2"),
        (Image(tag="2"), "ghcr.io/memkv/memkv@sha256:0a", "ghcr.io/memkv/memkv:2"),
        (Image(tag="2", digest="sha256:0b"), "r:5000/memkv:1", "r:5000/memkv@sha256:0b"),
        (Image(), "r:5000/memkv:1@sha256:0a", "r:5000/memkv@sha256:0a"),
        (Image(registry="r"), "memkv", "r/memkv"),
    ],
)
def test_image_takes_from_the_operators_own_what_is_left_out(
    image: Image, own: str, expected: str
) -> None:
    assert image_reference(image, own) == expected


POOL_CRD = Path(__file__).resolve().parents[3] / "charts/memkv/files/crds/memkvpools.yaml"


@pytest.mark.parametrize("name", [*POOLS, "client-certificates"])
def test_users_may_not_repeat_what_storage_pods_are_told(name: str) -> None:
    """The CRD refuses these flags and variables in spec.podTemplate: the last one would win."""
    rules = {rule.path: rule.rule for rule in rules_of(read_yaml(POOL_CRD))}
    flags = set(re.findall(r"'(--[a-z-]+)'", rules[".spec.podTemplate.extraArgs"]))
    variables = set(re.findall(r"'(\w+)'", rules[".spec.podTemplate.env[].name"]))
    spec = POOLS.get(name) or {**POOLS["tls"], "metadata": {"auth": {"mode": "MTLS"}}}
    added = child(cast(Object, spec), "podTemplate")
    for made in children(spec):
        if made.resource is not DAEMON_SETS:
            continue
        (container,) = objects(
            child(cast(Object, made.manifest), "spec", "template", "spec"), "containers"
        )
        arguments = [
            str(argument).partition("=")[0] for argument in cast(list[str], container["args"])
        ]
        assert set(arguments[1:]) - {"--insecure"} <= flags
        names = {str(entry["name"]) for entry in objects(container, "env")}
        assert names - {str(entry["name"]) for entry in objects(added, "env")} <= variables
    assert VARIABLE in variables


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ([], ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"]),
        ([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "tolerationSeconds": 5}],
         ["node.kubernetes.io/not-ready"]),
        ([{"operator": "Exists"}], []),
    ],
    ids=["said nothing", "said one", "tolerates everything"],
)  # fmt: skip
def test_metadata_pods_leave_dead_nodes_soon_unless_told_otherwise(
    told: list[JsonValue], kept: list[str]
) -> None:
    made = children({**POOLS["tls"], "metadata": {"tolerations": told}})
    (deployment,) = [one for one in made if one.resource is DEPLOYMENTS]
    spec = child(cast(Object, deployment.manifest), "spec", "template", "spec")
    found = objects(spec, "tolerations")
    assert found[: len(told)] == told
    assert [(one["key"], one["tolerationSeconds"]) for one in found[len(told) :]] == [
        (key, 30) for key in kept
    ]


@pytest.mark.parametrize(
    ("said", "requests", "limits"),
    [
        ({}, {"cpu": "50m", "memory": "128Mi"}, {"memory": "512Mi"}),
        (
            {"requests": {"memory": "1Gi"}},
            {"cpu": "50m", "memory": "1Gi"},
            {"memory": "1Gi"},
        ),
        (
            {"limits": {"memory": "64Mi", "cpu": "10m"}},
            {"cpu": "10m", "memory": "64Mi"},
            {"memory": "64Mi", "cpu": "10m"},
        ),
        (
            {"requests": {"cpu": 2}, "limits": {"memory": "1Gi"}},
            {"cpu": "2", "memory": "128Mi"},
            {"memory": "1Gi"},
        ),
    ],
)
def test_metadata_pods_never_ask_for_more_than_their_limit(
    said: JsonObject, requests: dict[str, str], limits: dict[str, str]
) -> None:
    made = children({**POOLS["tls"], "metadata": {"resources": said}})
    (deployment,) = [one for one in made if one.resource is DEPLOYMENTS]
    spec = child(cast(Object, deployment.manifest), "spec", "template", "spec")
    (container,) = objects(spec, "containers")
    assert container["resources"] == {"requests": requests, "limits": limits}
    assert "nodeSelector" not in spec
