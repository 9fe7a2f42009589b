"""The operator's process with 500 nodes: API server, controllers and scheduler are real, kwok plays
the kubelets, and a fake NodeAdmin behind the facts interface the data-plane nodes.

Prints what it measured. `make test-scale` runs it (4 minutes); MEMKV_SCALE_NODES asks for fewer
nodes.
"""

import asyncio
import os
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from memkv.localpool.ports import free_ports
from memkv.metadata.kubernetes.api_server import MERGE, ApiServer, connect_api_server
from memkv.shardmap import WorkerState
from memkv.testing.control_plane import ControlPlane, Daemon
from memkv_operator.plan.figures import NODES_PER_TURN
from memkv_operator.testing.cluster import POOL, SPEC, pause
from memkv_operator.testing.fleet import DOWN
from memkv_operator.testing.real_api import RealApi

NODES = int(os.environ.get("MEMKV_SCALE_NODES", "500"))
GROWS_BY = max(1, NODES // 25)
GRACE_S = 20
LOST_S_MAX = 40  # 25 is the promise; a Node is Ready for 40 s or more after its death
REST_S = 60
WRITES_PER_MINUTE_MAX = 90  # renewals of the Lease are 30
RSS_BYTES_MAX = 256 << 20
READY_S_MAX = 300
DELETED_S_MAX = 180
AT_ONCE = 16
CRDS = sorted((Path(__file__).resolve().parents[2] / "charts/memkv/files/crds").glob("*.yaml"))
LABELS = {"memkv.io/node": "true"}
KWOK = "kwok.x-k8s.io/node"
STAGES = Path(__file__).with_name("kwok.yaml")


@dataclass(frozen=True)
class Scene:
    """A control plane with kwok, and a namespace of its own."""

    plane: ControlPlane
    api: ApiServer
    real: RealApi
    doomed: Daemon
    """The kubelet of the one node that will die."""


@pytest.fixture
def plane(own_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> ControlPlane:
    """With controllers that are not slowed down by limits meant for small clusters."""
    for name in ("kube-controller-manager", "kube-scheduler", "kwok"):
        if not (own_plane.binaries / name).exists():
            pytest.skip(f"no {name} in {own_plane.binaries}: run deploy/dev/cluster/build.sh")
    monkeypatch.setenv("KUBECONFIG", str(own_plane.kubeconfig))
    limits = ("--kube-api-qps=300", "--kube-api-burst=600")
    own_plane.start_controllers(*limits)
    own_plane.spawn(
        "kube-scheduler", f"--kubeconfig={own_plane.kubeconfig}", "--leader-elect=false",
        "--secure-port=0", *limits,
    )  # fmt: skip
    return own_plane


def start_kwok(plane: ControlPlane, kind: str, network: int) -> Daemon:
    """Play the kubelets of all nodes of a kind."""
    return plane.spawn(
        "kwok", f"--kubeconfig={plane.kubeconfig}", f"--config={STAGES}",
        f"--cidr=10.{network}.0.0/16", "--node-lease-duration-seconds=40",
        f"--manage-nodes-with-annotation-selector={KWOK}={kind}",
    )  # fmt: skip


async def add_nodes(scene: Scene, names: list[str], kind: str = "fake") -> None:
    limit = asyncio.Semaphore(AT_ONCE)

    async def add(name: str) -> None:
        node: dict[str, Any] = {
            "metadata": {
                "name": name, "annotations": {KWOK: kind},
                "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", **LABELS},
            },
        }  # fmt: skip
        async with limit:
            await scene.api.request("POST", "/api/v1/nodes", None, node)

    await asyncio.gather(*map(add, names))
    scene.real.names += names


async def seconds_until(holds: Callable[[], Awaitable[bool]], within_s: float) -> float:
    begun = time.monotonic()
    while not await holds():
        assert time.monotonic() - begun < within_s, f"{holds.__name__} after {within_s} s"
        await pause(0.25)
    return time.monotonic() - begun


def samples(port: int) -> dict[str, float]:
    """Return the operator's metrics: name and labels as Prometheus writes them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def writes_of(found: dict[str, float]) -> dict[str, float]:
    """Return requests that write, by verb."""
    verbs = ("POST", "PUT", "PATCH", "DELETE")
    requests = "memkv_operator_api_requests_total"
    return {
        verb: sum(v for k, v in found.items() if k.startswith(requests) and f"verb={verb}" in k)
        for verb in verbs
    }


def looks_of(found: dict[str, float]) -> tuple[float, float]:
    """Return how often the pool was looked at, and the seconds that took."""
    seconds = "memkv_operator_reconcile_duration_seconds"
    return found[f"{seconds}_count{{}}"], found[f"{seconds}_sum{{}}"]


def latest_s(found: dict[str, float]) -> float:
    """Return a bound of how late the operator's event loop ever came to what was due."""
    late = "memkv_operator_event_loop_late_seconds"
    beats = found[f"{late}_count{{}}"]
    bounds = {
        float(key.partition("le=")[2].rstrip("}")): count
        for key, count in found.items()
        if key.startswith(f"{late}_bucket")
    }
    return min(bound for bound, count in bounds.items() if count == beats)


def rss_bytes(pid: int, field: str) -> int:
    """Return a process's resident memory: VmRSS now, VmHWM at most."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise AssertionError(f"/proc/{pid}/status has no {field}")


@asynccontextmanager
async def scene_of(plane: ControlPlane) -> AsyncIterator[Scene]:
    api = await connect_api_server()
    real = RealApi(api, "scale")
    await real.prepare([yaml.safe_load(path.read_text()) for path in CRDS])
    start_kwok(plane, "fake", 20)
    yield Scene(plane, api, real, start_kwok(plane, "doomed", 21))
    await api.close()


def start_operator(scene: Scene, port: int) -> Daemon:
    namespace = scene.real.namespace
    command = [
        sys.executable, "-m", "memkv_operator.testing.fleet", f"{namespace}/{POOL}", "run",
        "--image=memkv:1", f"--lease-namespace={namespace}", "--http-host=127.0.0.1",
        f"--http-port={port}",
    ]  # fmt: skip
    return Daemon("operator", command, scene.plane.directory)


async def make_pool(scene: Scene) -> None:
    pool: dict[str, Any] = {
        "apiVersion": "memkv.io/v1alpha1", "kind": "MemKVPool", "metadata": {"name": POOL},
        "spec": {
            **SPEC, "sharding": {"slots": 4096, "maxMovingSlotsPercent": 20},
            "disruption": {"nodeLostGraceSeconds": GRACE_S},
        },
    }  # fmt: skip
    await scene.api.request("POST", f"{scene.real.root}/memkvpools", None, pool)


@pytest.mark.timeout(1200)
def test_operator_with_hundreds_of_nodes(plane: ControlPlane) -> None:
    async def main() -> None:
        async with scene_of(plane) as scene:
            operator = None
            try:
                (port,) = free_ports(1)
                operator = start_operator(scene, port)
                await live(scene, operator, port)
            finally:
                if operator is not None:
                    operator.stop()

    asyncio.run(main())


async def live(scene: Scene, operator: Daemon, port: int) -> None:
    """Make a pool, leave it at rest, kill a node, grow, and delete it all."""
    real = scene.real
    begun = time.monotonic()
    await add_nodes(scene, [f"n{number:04}" for number in range(NODES - 1)])
    await add_nodes(scene, ["doomed"], "doomed")
    print(f"\n{NODES} nodes joined in {time.monotonic() - begun:.1f} s")
    await make_pool(scene)
    ready_s = await seconds_until(real.is_ready, READY_S_MAX)
    print(f"pool Ready {ready_s:.1f} s after apply")
    await at_rest(real, operator, port)
    await lose_a_node(scene)
    await add_nodes(scene, [f"g{number:04}" for number in range(GROWS_BY)])

    async def grown() -> bool:
        status = (await real.pool())["status"]
        if (await real.condition("Rebalanced"))["status"] != "True":
            return False
        return bool(status["readyNodes"] == NODES - 1 + GROWS_BY)

    grown_s = await seconds_until(grown, READY_S_MAX)
    print(f"{GROWS_BY} more nodes serve, and slots have moved, after {grown_s:.1f} s")
    print(f"its event loop was never late by more than {latest_s(samples(port)):.2f} s")
    peak = rss_bytes(operator.pid, "VmHWM")
    print(f"operator's memory: {peak >> 20} MiB at most")
    assert peak < RSS_BYTES_MAX
    await scene.api.request("DELETE", f"{real.root}/memkvpools/{POOL}")

    async def gone() -> bool:
        listing: Any = await scene.api.request("GET", f"{real.root}/memkvnodes", {"limit": "1"})
        return not listing["items"] and not await real.pool()

    print(f"pool and its MemKVNodes gone after {await seconds_until(gone, DELETED_S_MAX):.1f} s")
    operator.check_running()


async def at_rest(real: RealApi, operator: Daemon, port: int) -> None:
    """Once slots have settled, count what is written while nothing happens."""

    async def settled() -> bool:
        return bool((await real.condition("Rebalanced"))["status"] == "True")

    await seconds_until(settled, READY_S_MAX)
    await pause(10)
    before, begun = samples(port), time.monotonic()
    await pause(REST_S)
    after, minutes = samples(port), (time.monotonic() - begun) / 60
    was = writes_of(before)
    writes = {verb: (count - was[verb]) / minutes for verb, count in writes_of(after).items()}
    print(f"writes a minute at rest: {', '.join(f'{v} {n:.1f}' for v, n in writes.items())}")
    (looks, spent_s), (calm_looks, calm_s) = looks_of(after), looks_of(before)
    print(f"{looks:.0f} looks at the pool, {1000 * spent_s / looks:.0f} ms each")
    calm_looks, calm_s = looks - calm_looks, spent_s - calm_s
    print(f"{calm_looks:.0f} of them at rest, {1000 * calm_s / max(1, calm_looks):.0f} ms each")
    print(f"operator's memory: {rss_bytes(operator.pid, 'VmRSS') >> 20} MiB")
    assert sum(writes.values()) <= WRITES_PER_MINUTE_MAX
    # Figures follow a map that changed: so many nodes a turn, whatever there are of them.
    assert writes["PATCH"] + writes["POST"] + writes["DELETE"] <= NODES_PER_TURN + 5


async def lose_a_node(scene: Scene) -> None:
    """Kill a node's kubelet and its worker at once, and wait for a map without it."""
    down = {"metadata": {"labels": {DOWN: ""}}}
    scene.doomed.kill()
    await scene.api.request("PATCH", "/api/v1/nodes/doomed", None, down, MERGE)

    async def lost() -> bool:
        found = await scene.real.map()
        assert found is not None
        states = {worker.node_name: worker.state for worker in found.workers}
        return states["doomed"] is WorkerState.LOST

    lost_s = await seconds_until(lost, 3 * (GRACE_S + 5))
    node: Any = await scene.api.request("GET", "/api/v1/nodes/doomed")
    ready = next(c["status"] for c in node["status"]["conditions"] if c["type"] == "Ready")
    print(
        f"dead node out of the map after {lost_s:.1f} s, grace {GRACE_S} s; its Node says {ready}"
    )
    assert lost_s <= LOST_S_MAX
