"""Calls to a node's NodeAdmin from an event loop, over certificates that may be replaced."""

import grpc
import grpc.aio

from memkv.errors import ConfigError, PeerGone
from memkv.metadata.certificates import ClientTls
from memkv.metadata.endpoint import channel_options
from memkv_proto import node_admin_pb2, node_admin_pb2_grpc


class NodeCalls:
    """One node's admin service. Under TLS a channel that failed is made anew, with the files as
    they are then: gRPC would connect again with those it once had."""

    def __init__(self, endpoint: str, tls: ClientTls | None) -> None:
        """Nothing is connected or read yet."""
        self._endpoint = endpoint
        self._tls = tls
        self._channel: grpc.aio.Channel | None = None

    async def facts(self, timeout_s: float) -> node_admin_pb2.GetFactsResponse:
        """Return what the node knows of itself. PeerGone says why there is no answer."""
        try:
            self._channel = self._channel or self._open()
            stub = node_admin_pb2_grpc.NodeAdminStub(self._channel)
            return await stub.GetFacts(node_admin_pb2.GetFactsRequest(), timeout=timeout_s)
        except ConfigError as error:
            raise PeerGone(str(error)) from error
        except grpc.aio.AioRpcError as error:
            if self._tls is not None:
                await self.close()
            raise PeerGone(f"{error.code().name}: {error.details()}") from error

    async def close(self) -> None:
        """Close the connection; the next call opens another."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close(None)

    def _open(self) -> grpc.aio.Channel:
        options = channel_options(self._tls)
        if self._tls is None:
            return grpc.aio.insecure_channel(self._endpoint, options=options)
        credentials = self._tls.credentials()
        return grpc.aio.secure_channel(self._endpoint, credentials, options=options)
