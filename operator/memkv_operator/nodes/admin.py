"""memkv.v1.NodeAdmin from the operator's side."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import grpc
import grpc.aio

from memkv.errors import PeerGone, ProtocolError
from memkv.metadata.endpoint import CLIENT_OPTIONS
from memkv_proto import node_admin_pb2 as pb
from memkv_proto import node_admin_pb2_grpc as pb_grpc

CALL_TIMEOUT_S = 2.0  # a few hundred bytes; a node that needs longer is not well


class NodeAdmin(Protocol):
    """One node's admin service. PeerGone: no answer. ProtocolError: it refused what was asked."""

    async def facts(self) -> pb.GetFactsResponse:
        """Return what the node knows of itself now."""

    async def apply(self, spec: pb.NodeSpec) -> str:
        """Hand over what the node shall be. Returns what waits for a restart, for people."""

    async def close(self) -> None:
        """Close the connection."""


@dataclass(frozen=True, slots=True)
class AdminTls:
    """What proves the operator to a pool's nodes, and them to it; in PEM."""

    authority: bytes
    certificate: bytes
    key: bytes
    server_name: str
    """In the nodes' certificates."""


Dial = Callable[[str, AdminTls | None], NodeAdmin]
"""Makes a NodeAdmin for HOST:PORT; without TLS for pools that have none."""


class GrpcNodeAdmin:
    """A NodeAdmin over the network."""

    def __init__(self, endpoint: str, tls: AdminTls | None) -> None:
        """Connects with the first call."""
        self._channel = admin_channel(endpoint, tls)
        self._stub = pb_grpc.NodeAdminStub(self._channel)

    async def facts(self) -> pb.GetFactsResponse:
        """As NodeAdmin."""
        try:
            return await self._stub.GetFacts(pb.GetFactsRequest(), timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise translated(error) from error

    async def apply(self, spec: pb.NodeSpec) -> str:
        """As NodeAdmin."""
        try:
            answer = await self._stub.Apply(pb.ApplyRequest(spec=spec), timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise translated(error) from error
        return answer.pending

    async def close(self) -> None:
        """As NodeAdmin."""
        await self._channel.close(None)


def admin_channel(endpoint: str, tls: AdminTls | None) -> grpc.aio.Channel:
    """Return a channel to an admin service."""
    options = list(CLIENT_OPTIONS)
    if tls is None:
        return grpc.aio.insecure_channel(endpoint, options=options)
    options.append(("grpc.ssl_target_name_override", tls.server_name))
    credentials = grpc.ssl_channel_credentials(tls.authority, tls.key, tls.certificate)
    return grpc.aio.secure_channel(endpoint, credentials, options=options)


def translated(error: grpc.aio.AioRpcError) -> PeerGone | ProtocolError:
    """Return what an admin service answered as an error of ours."""
    message = f"{error.code().name}: {error.details()}"
    refused = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT)
    return ProtocolError(message) if error.code() in refused else PeerGone(message)
