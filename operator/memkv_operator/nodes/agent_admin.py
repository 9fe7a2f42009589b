"""memkv.v1.AgentAdmin from the operator's side."""

from collections.abc import Callable
from typing import Protocol

import grpc
import grpc.aio

from memkv_operator.nodes.admin import CALL_TIMEOUT_S, AdminTls, admin_channel, translated
from memkv_proto import agent_admin_pb2 as pb
from memkv_proto import agent_admin_pb2_grpc as pb_grpc


class AgentAdmin(Protocol):
    """One agent. PeerGone: no answer. ProtocolError: it refused what was asked."""

    async def facts(self) -> pb.AgentFacts:
        """Return what the agent sees of its node now."""

    async def apply(self, spec: pb.AgentSpec) -> int:
        """Hand over what the agent shall do. Returns the generation in force."""

    async def close(self) -> None:
        """Close the connection."""


DialAgent = Callable[[str, AdminTls | None], AgentAdmin]
"""Makes an AgentAdmin for HOST:PORT."""


class GrpcAgentAdmin:
    """An AgentAdmin over the network."""

    def __init__(self, endpoint: str, tls: AdminTls | None) -> None:
        """Connects with the first call."""
        self._channel = admin_channel(endpoint, tls)
        self._stub = pb_grpc.AgentAdminStub(self._channel)

    async def facts(self) -> pb.AgentFacts:
        """As AgentAdmin."""
        try:
            answer = await self._stub.GetAgentFacts(
                pb.GetAgentFactsRequest(), timeout=CALL_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            raise translated(error) from error
        return answer.facts

    async def apply(self, spec: pb.AgentSpec) -> int:
        """As AgentAdmin."""
        try:
            answer = await self._stub.ApplyAgent(
                pb.ApplyAgentRequest(spec=spec), timeout=CALL_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            raise translated(error) from error
        return int(answer.spec_generation)

    async def close(self) -> None:
        """As AgentAdmin."""
        await self._channel.close(None)
