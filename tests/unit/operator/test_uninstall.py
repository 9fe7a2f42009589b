"""Before the operator is taken away: no pool may be left that nobody can delete."""

import asyncio
from typing import Any

import pytest

from memkv.clock import SystemClock
from memkv.errors import ConfigError, RetryLater
from memkv.metadata.kubernetes.errors import Conflict, Forbidden
from memkv.testing.api_server import FakeApiServer, Request
from memkv_operator.api.names import DEPLOYMENTS, FINALIZER, LEASES, POOLS
from memkv_operator.kube.lease import LeaseConfig
from memkv_operator.kube.objects import Objects
from memkv_operator.main import build_parser
from memkv_operator.run.uninstall import (
    CONFLICTS_MAX,
    UninstallSettings,
    prepare_uninstall,
    run_uninstall,
)

LEASE = LeaseConfig("memkv", "memkv-operator", "hook", 30_000, 20_000, 20)


def settings(**changed: Any) -> UninstallSettings:
    return UninstallSettings(LEASE, "memkv-operator", **changed)


def pool(name: str, namespace: str = "inference", *finalizers: str) -> dict[str, Any]:
    return {
        "apiVersion": POOLS.api_version, "kind": POOLS.kind, "spec": {},
        "metadata": {"name": name, "namespace": namespace, "finalizers": list(finalizers)},
    }  # fmt: skip


async def cluster(*pools: dict[str, Any]) -> FakeApiServer:
    server = FakeApiServer()
    objects = Objects(server)
    deployment: dict[str, Any] = {
        "apiVersion": DEPLOYMENTS.api_version, "kind": DEPLOYMENTS.kind,
        "metadata": {"name": "memkv-operator", "namespace": "memkv"}, "spec": {"replicas": 2},
    }  # fmt: skip
    await objects.create(DEPLOYMENTS, "memkv", deployment)
    for manifest in pools:
        await objects.create(POOLS, manifest["metadata"]["namespace"], manifest)
    server.requests.clear()
    return server


async def prepared(server: FakeApiServer, **changed: Any) -> None:
    await prepare_uninstall(Objects(server), settings(**changed), SystemClock())


def finalizers(server: FakeApiServer) -> dict[str, list[str]]:
    return {
        item["metadata"]["name"]: item["metadata"].get("finalizers", [])
        for item in server.all_of("memkvpools")
    }


def test_nothing_is_done_where_there_are_no_pools() -> None:
    async def run() -> None:
        server = await cluster()
        await prepared(server, force=True)
        assert not server.writes

    asyncio.run(run())


def test_pools_are_named_and_nothing_is_changed() -> None:
    async def run() -> None:
        many = [pool(f"p{number:02}", "inference", FINALIZER) for number in range(12)]
        server = await cluster(*many)
        with pytest.raises(
            ConfigError, match=r"inference/p00, .* and 2 more\. Without an operator"
        ):
            await prepared(server)
        assert not server.writes

    asyncio.run(run())


def test_pools_of_other_namespaces_are_not_ours() -> None:
    async def run() -> None:
        server = await cluster(pool("a", "elsewhere", FINALIZER))
        await prepared(server, namespaces=("inference",))
        with pytest.raises(ConfigError, match="elsewhere/a"):
            await prepared(server, namespaces=("inference", "elsewhere"))

    asyncio.run(run())


def test_a_namespace_that_is_gone_with_its_role_holds_nothing_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        server = await cluster(pool("ours"))

        def fault(request: Request, was_done: bool) -> Exception | None:
            return Forbidden("403") if "/namespaces/gone/" in request.path else None

        server.fault = fault
        await prepared(server, namespaces=("gone", "empty"))
        with pytest.raises(ConfigError, match="inference/ours"):
            await prepared(server, namespaces=("gone", "inference"))

    asyncio.run(test())
    assert "kubectl get memkvpools -n gone" in caplog.text


def test_forced_it_stops_the_operator_leads_and_lets_go() -> None:
    async def run() -> None:
        server = await cluster(
            pool("a", "inference", FINALIZER, "example.org/other"), pool("b", "inference")
        )
        await prepared(server, force=True)
        assert finalizers(server) == {"a": ["example.org/other"], "b": []}
        (deployment,) = server.all_of("deployments")
        assert deployment["spec"]["replicas"] == 0
        written = [request.path for request in server.writes]
        stopped = DEPLOYMENTS.path("memkv", "memkv-operator")
        elected = LEASES.path("memkv")
        assert written.index(stopped) < written.index(elected)
        assert written.index(elected) < written.index(POOLS.path("inference", "a"))
        (lease,) = server.all_of("leases")
        assert not lease["spec"]["holderIdentity"]

    asyncio.run(run())


def test_a_running_operator_is_waited_for() -> None:
    """Its Lease must end first, or it gives the finalizers back."""

    async def run() -> None:
        server = await cluster(pool("a", "inference", FINALIZER))
        lease: dict[str, Any] = {
            "apiVersion": LEASES.api_version, "kind": LEASES.kind,
            "metadata": {"name": "memkv-operator", "namespace": "memkv"},
            "spec": {
                "holderIdentity": "operator", "leaseTransitions": 3, "leaseDurationSeconds": 3600
            },
        }  # fmt: skip
        objects = Objects(server)
        held = await objects.create(LEASES, "memkv", lease)
        waiting = asyncio.create_task(prepared(server, force=True))
        looks = LEASES.path("memkv", "memkv-operator")
        async with asyncio.timeout(60):
            while sum(request.path == looks for request in server.requests) < 3:
                await asyncio.sleep(0)
        assert finalizers(server) == {"a": [FINALIZER]}
        released = {**held, "spec": {**lease["spec"], "holderIdentity": ""}}
        await objects.replace(LEASES, "memkv", "memkv-operator", released)
        async with asyncio.timeout(60):
            await waiting
        assert finalizers(server) == {"a": []}

    asyncio.run(run())


def test_a_pool_that_others_write_is_tried_again_for_a_while() -> None:
    async def run(conflicts: int) -> FakeApiServer:
        server = await cluster(pool("a", "inference", FINALIZER))
        left = [conflicts]

        def fault(request: Request, done: bool) -> Exception | None:
            if not done and request.method == "PATCH" and "memkvpools" in request.path and left[0]:
                left[0] -= 1
                return Conflict("written by another")
            return None

        server.fault = fault
        await prepared(server, force=True)
        return server

    assert finalizers(asyncio.run(run(CONFLICTS_MAX - 1))) == {"a": []}
    with pytest.raises(RetryLater, match="inference/a"):
        asyncio.run(run(CONFLICTS_MAX))


def test_the_command_closes_its_connection() -> None:
    closed = []

    class Server(FakeApiServer):
        async def close(self) -> None:
            closed.append(True)

    async def connect() -> FakeApiServer:
        return Server()

    run_uninstall(settings(), connect)
    assert closed
    arguments = build_parser().parse_args(["uninstall", "--namespace", "a", "--force"])
    assert (arguments.command, arguments.namespace, arguments.force) == ("uninstall", ["a"], True)
