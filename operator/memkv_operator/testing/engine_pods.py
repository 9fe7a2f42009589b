"""Pods with vLLM that use a pool: the sample for users, run by CPUs for tests on a live cluster.

The sample's pods stay as restricted as they are: what a test gives them are volumes by claim. The
image is MemKV's own, whose interpreter imports the engine's packages from such a volume.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from memkv_operator.testing.crds import Object, child, objects, read_all_yaml
from memkv_operator.testing.live_cluster import ROOT, LiveCluster

SAMPLE = ROOT / "deploy/samples/clients/vllm.yaml"
SAMPLE_POOL = "pool-secure"
NAME = "vllm"
PORT = 8000
ASK = (
    "import sys, urllib.request as web; headers = {'Content-Type': 'application/json'};"
    f" url = 'http://127.0.0.1:{PORT}/v1/completions';"
    " asked = web.Request(url, sys.stdin.buffer.read(), headers);"
    " print(web.urlopen(asked).read().decode())"
)
PACKAGES = "/opt/engine"
MODELS = "/models"
CPU_ENVIRONMENT = {
    "PYTHONPATH": PACKAGES,
    "LD_LIBRARY_PATH": f"{MODELS}/lib",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CACHE_ROOT": f"{MODELS}/cache",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
}
CPU_ARGUMENTS = ["--enforce-eager", "--max-model-len=4096", "--max-num-batched-tokens=4096"]
CPU_RESOURCES: Object = {"requests": {"cpu": "100m", "memory": "2Gi"}, "limits": {"memory": "4Gi"}}


def volume(name: str, folder: Path, namespace: str) -> list[Object]:
    """Return a claim in `namespace`, and the volume for it alone: a folder that all nodes have."""
    size: Object = {"storage": "8Gi"}
    claim: Object = {"name": name, "namespace": namespace}
    common: Object = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
    path: Object = {"path": str(folder), "type": "Directory"}
    return [
        {
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": f"{namespace}-{name}"},
            "spec": {**common, "capacity": size, "hostPath": path, "claimRef": claim,
                     "persistentVolumeReclaimPolicy": "Retain"},
        },
        {
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": claim,
            "spec": {**common, "resources": {"requests": size},
                     "volumeName": f"{namespace}-{name}"},
        },
    ]  # fmt: skip


def rights(pool: str, namespace: str) -> list[Object]:
    """Return the sample's right to connect, for its account in another namespace than the pool."""
    text = json.dumps([m for m in read_all_yaml(SAMPLE) if str(m["kind"]).startswith("Role")])
    manifests = cast(list[Object], json.loads(text.replace(SAMPLE_POOL, pool)))
    for manifest in manifests:
        for subject in objects(manifest, "subjects"):
            subject["namespace"] = namespace
    return manifests


def engines(pool: str, image: str) -> list[Object]:
    """Return the sample's account, Deployment and Service, to be run without a GPU."""
    text = json.dumps([m for m in read_all_yaml(SAMPLE) if not str(m["kind"]).startswith("Role")])
    manifests = cast(list[Object], json.loads(text.replace(SAMPLE_POOL, pool)))
    for manifest in manifests:
        if manifest["kind"] == "Deployment":
            _by_cpu(child(manifest, "spec", "template", "spec"), image)
    return manifests


def _by_cpu(pod: Object, image: str) -> None:
    claim: Object = {"claimName": "engine", "readOnly": True}
    objects(pod, "volumes").append({"name": "engine", "persistentVolumeClaim": claim})
    (container,) = objects(pod, "containers")
    command = cast(list[object], container["command"])
    assert command[:3] == ["vllm", "serve", f"{MODELS}/model"]
    environment: list[Object] = [
        {"name": name, "value": value} for name, value in CPU_ENVIRONMENT.items()
    ]
    container["image"] = image
    # What `vllm serve MODEL` runs; the command asks for a distribution called vllm, not vllm-cpu.
    container["command"] = [
        "python3", "-m", "vllm.entrypoints.openai.api_server", f"--model={command[2]}",
        *command[3:], *CPU_ARGUMENTS,
    ]  # fmt: skip
    container["resources"] = CPU_RESOURCES
    objects(container, "env").extend(environment)
    mount: Object = {"name": "engine", "mountPath": PACKAGES, "readOnly": True}
    objects(container, "volumeMounts").append(mount)


@dataclass(frozen=True, slots=True)
class Answer:
    """Of an engine to one prompt."""

    tokens: Sequence[int]
    cached: int
    """Tokens of the prompt that it did not compute."""


@dataclass(frozen=True, slots=True)
class EnginePod:
    """One engine, spoken to through the API server, which has a way to every pod."""

    cluster: LiveCluster
    namespace: str
    name: str

    def ask(self, prompt: Sequence[int], tokens: int) -> Answer:
        """Have it answer a prompt of token ids by some tokens, the likeliest ones."""
        request: Object = {
            "model": "model", "prompt": list(prompt), "max_tokens": tokens, "temperature": 0,
            "ignore_eos": True, "return_token_ids": True,
        }  # fmt: skip
        words = ("exec", "-i", "-n", self.namespace, self.name, "--", "python3", "-c", ASK)
        answer = cast(Object, json.loads(self.cluster.kubectl(*words, text=json.dumps(request))))
        (choice,) = objects(answer, "choices")
        cached = child(answer, "usage", "prompt_tokens_details").get("cached_tokens") or 0
        return Answer(cast(list[int], choice["token_ids"]), cast(int, cached))

    def count(self, metric: str) -> float:
        """Return one of its counters, over all labels."""
        return read_metric(self.cluster, self.namespace, self.name, PORT, metric)


def proxy(namespace: str, pod: str, port: int, path: str) -> str:
    """Return where the API server has a port of a pod."""
    return f"/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy/{path}"


def read_metric(
    cluster: LiveCluster, namespace: str, pod: str, port: int, metric: str, label: str = ""
) -> float:
    """Return the sum of a metric's samples that carry a label such as `tenant="a"`."""
    text = cluster.kubectl("get", "--raw", proxy(namespace, pod, port, "metrics"))
    samples = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return sum(
        float(value)
        for name, _, value in samples
        if name.partition("{")[0] == metric and label in name
    )
