"""Drives on a real API server: agents are fakes behind real gRPC, with the certificates that the
operator keeps for them."""

import asyncio
import json
import shlex
from collections.abc import Awaitable, Callable
from typing import Any

from memkv.metadata.kubernetes.api_server import MERGE
from memkv_operator.nodes.agent_admin import GrpcAgentAdmin
from memkv_operator.testing.agents import FakeAgent, FakeDisk
from memkv_operator.testing.cluster import SPEC
from memkv_operator.testing.real_api import RealApi
from memkv_operator.testing.served_agents import serving

OnRealApi = Callable[[Callable[[RealApi], Awaitable[None]]], None]


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
            said = "DEADLINE_EXCEEDED"
            while "DEADLINE_EXCEEDED" in said:  # a machine that stood still for a moment
                said = str((await asyncio.gather(admin.facts(), return_exceptions=True))[0])
            await admin.close()
            assert "UNAVAILABLE" in said

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
