"""Fake agents behind real gRPC, as pods of a real API server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from memkv.metadata.kubernetes.api_server import MERGE
from memkv_operator.api.names import AGENTS_IDENTITY
from memkv_operator.identity.secrets import content_of
from memkv_operator.testing.agents import FakeAgent
from memkv_operator.testing.real_api import RealApi
from memkv_proto import agent_admin_pb2 as pb
from memkv_proto import agent_admin_pb2_grpc as pb_grpc


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
