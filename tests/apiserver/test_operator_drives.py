"""Drives on a real API server: agents are fakes behind real gRPC, with the certificates that the
operator keeps for them."""

import asyncio
import json
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from memkv.metadata.kubernetes.api_server import MERGE
from memkv_operator.api.names import AGENTS_IDENTITY
from memkv_operator.identity.secrets import content_of
from memkv_operator.nodes.agent_admin import GrpcAgentAdmin
from memkv_operator.testing.agents import FakeAgent, FakeDisk
from memkv_operator.testing.cluster import SPEC
from memkv_operator.testing.real_api import RealApi
from memkv_proto import agent_admin_pb2 as pb
from memkv_proto import agent_admin_pb2_grpc as pb_grpc

OnRealApi = Callable[[Callable[[RealApi], Awaitable[None]]], None]


class Servicer(pb_grpc.AgentAdminServicer):
    """A fake agent on the wire."""

    def __init__(self, agent: FakeAgent) -> None:
        self.agent = agent
        self.callers: set[str] = set()

    async def GetAgentFacts(  # noqa: N802  # gRPC's name
        self, request: Any, context: Any
    ) -> pb.GetAgentFactsResponse:
        names = context.auth_context().get("x509_subject_alternative_name", [])
        self.callers |= {name.decode() for name in names}
        return pb.GetAgentFactsResponse(facts=self.agent.facts())

    async def ApplyAgent(  # noqa: N802  # gRPC's name
        self, request: pb.ApplyAgentRequest, context: Any
    ) -> pb.ApplyAgentResponse:
        return pb.ApplyAgentResponse(spec_generation=self.agent.apply(request.spec))


@asynccontextmanager
async def serving(real: RealApi, node: str, agent: FakeAgent) -> AsyncIterator[Servicer]:
    """The pod of an agent: it waits for its Secret, as kubelet would, and serves with it."""
    core = f"/api/v1/namespaces/{real.namespace}"
    servicer, server = Servicer(agent), grpc.aio.server()
    pod: Any = {
        "metadata": {
            "name": f"agent-{node}",
            "labels": {
                "app.kubernetes.io/component": "agent", "app.kubernetes.io/part-of": "memkv",
            },
        },
        "spec": {"nodeName": node, "containers": [{"name": "agent", "image": "memkv:1"}]},
    }  # fmt: skip
    secret: Any = None
    pod["spec"]["containers"][0]["ports"] = [{"name": "admin", "containerPort": 9}]
    created: Any = await real.api.request("POST", f"{core}/pods", None, pod)

    async def has_secret() -> bool:
        nonlocal secret
        secret = await real.get(f"{core}/secrets/{AGENTS_IDENTITY}")
        return secret is not None

    await real.until(has_secret)
    content = content_of(secret)
    pb_grpc.add_AgentAdminServicer_to_server(servicer, server)
    port = server.add_secure_port(
        "127.0.0.1:0",
        grpc.ssl_server_credentials(
            [(content["tls.key"], content["tls.crt"])], content["ca.crt"], True
        ),
    )
    await server.start()
    # A pod's ports are immutable: it is made anew with the one that was free.
    await real.api.request("DELETE", f"{core}/pods/{created['metadata']['name']}", None, {
        "gracePeriodSeconds": 0,
    })  # fmt: skip
    pod["spec"]["containers"][0]["ports"][0]["containerPort"] = port
    await real.api.request("POST", f"{core}/pods", None, pod)
    await real.api.request(
        "PATCH", f"{core}/pods/agent-{node}/status", None, {"status": {"podIP": "127.0.0.1",
        "podIPs": [{"ip": "127.0.0.1"}]}}, MERGE,
    )  # fmt: skip
    try:
        yield servicer
    finally:
        await server.stop(0)


def test_a_drive_is_approved_erased_and_serves(on_real_api: OnRealApi) -> None:
    async def test(real: RealApi) -> None:
        await real.add_nodes(1)
        (node,) = real.names
        agent = FakeAgent(node)
        agent.add(FakeDisk("nvme-a", "ext4"), FakeDisk("nvme-b", unusable_reason="mounted at /"))
        real.kubelets.hand_drives = lambda name, resource: agent.hand_over(resource)
        group = {**SPEC["nodeGroups"][0], "nodeSelector": real.label}
        await real.make_pool(nodeGroups=[{**group, "storage": {"deviceSelector": {}}}])
        async with real.operator(), serving(real, node, agent) as servicer:

            async def waits() -> bool:
                found = await real.condition("DrivesReady")
                return bool(found["reason"] == "DrivePendingApproval")

            await real.until(waits)
            message = (await real.condition("DrivesReady"))["message"]
            words = shlex.split(message[message.index("kubectl patch") :])
            path = f"{real.root}/memkvnodes/{words[3]}"
            assert not agent.erased
            # The API server takes exactly what the condition says.
            await real.api.request("PATCH", path, None, json.loads(words[8]), MERGE)
            await real.until(real.is_ready)
            assert [content for _, content in agent.erased] == ["ext4"]

            async def shown() -> bool:
                found: Any = await real.get(path)
                drives = {d["id"]: d for d in found["status"]["drives"]}
                return bool("workerUUID" in drives["nvme-a"])

            await real.until(shown)
            found: Any = await real.get(path)
            drives = {drive["id"]: drive for drive in found["status"]["drives"]}
            assert drives["nvme-a"]["state"] == "Ready"
            assert drives["nvme-a"]["position"] == 0
            assert drives["nvme-b"]["deniedReason"] == "mounted at /"
            pool = await real.pool()
            assert pool["status"]["drives"]["ready"] == 1
            assert servicer.callers == {"memkv-operator"}

    on_real_api(test)


def test_an_agent_answers_nobody_without_a_certificate(on_real_api: OnRealApi) -> None:
    async def test(real: RealApi) -> None:
        await real.add_nodes(1)
        (node,) = real.names
        group = {**SPEC["nodeGroups"][0], "nodeSelector": real.label}
        await real.make_pool(nodeGroups=[{**group, "storage": {"deviceSelector": {}}}])
        agent = FakeAgent(node)
        async with real.operator(), serving(real, node, agent):
            pod: Any = await real.get(f"/api/v1/namespaces/{real.namespace}/pods/agent-{node}")
            port = pod["spec"]["containers"][0]["ports"][0]["containerPort"]
            admin = GrpcAgentAdmin(f"127.0.0.1:{port}", None)
            refused = await asyncio.gather(admin.facts(), return_exceptions=True)
            await admin.close()
            assert "UNAVAILABLE" in str(refused[0])

            async def seen() -> bool:
                return bool((await real.condition("DrivesReady"))["reason"] == "NoDrives")

            await real.until(seen)

    on_real_api(test)


def test_a_pool_without_agents_names_the_command_that_installs_them(
    on_real_api: OnRealApi,
) -> None:
    async def test(real: RealApi) -> None:
        await real.add_nodes(1)
        group = {**SPEC["nodeGroups"][0], "nodeSelector": real.label}
        await real.make_pool(nodeGroups=[{**group, "storage": {"deviceSelector": {}}}])
        async with real.operator():

            async def said() -> bool:
                found = await real.condition("ConfigValid")
                return bool(found["reason"] == "AgentMissing")

            await real.until(said)
            assert "agent.enabled=true" in (await real.condition("ConfigValid"))["message"]

    on_real_api(test)
