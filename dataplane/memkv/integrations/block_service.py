"""memkv.v1.BlockEventsService: a pool's block events for routers in any language.

A gateway beside the router, not a part of the pool: a client that watches, and a gRPC server. Each
stream has a watcher of its own, asked as its reader reads, so that a slow reader misses events, is
told so and gets a snapshot; nothing is queued for it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

from memkv.client.block_watch import BlockUpdate, Change
from memkv.client.sync import Client
from memkv.errors import ConfigError
from memkv.limits import BLOCK_STREAMS_MAX
from memkv.metadata.certificates import TlsFiles, open_port
from memkv.metadata.endpoint import SERVER_OPTIONS, join_endpoint
from memkv_proto import block_events_pb2 as pb
from memkv_proto import block_events_pb2_grpc as pb_grpc

_CHANGES = {
    Change.GAP: pb.BLOCK_CHANGE_GAP,
    Change.EVENTS: pb.BLOCK_CHANGE_EVENTS,
    Change.SYNCED: pb.BLOCK_CHANGE_SYNCED,
    Change.GONE: pb.BLOCK_CHANGE_GONE,
}


def response_of(update: BlockUpdate) -> pb.WatchBlocksResponse:
    """Return an update as gRPC has it."""
    return pb.WatchBlocksResponse(
        worker_uuid=update.worker_uuid,
        node_name=update.node_name,
        change=_CHANGES[update.change],
        reason=update.reason,
        events=[
            pb.BlockEvent(
                digest=event.digest, prefix_id=event.prefix_id, depth=event.depth,
                removed=bool(event.kind),
            )
            for event in update.events
        ],
    )  # fmt: skip


class BlockServicer(pb_grpc.BlockEventsServiceServicer):
    """Answers WatchBlocks."""

    def __init__(self, client: Client, pool: str, interval_ms: int) -> None:
        """`interval_ms`: between two questions to the workers when nothing was new."""
        self._client = client
        self._pool = pool
        self._interval_s = interval_ms / 1000
        self._stopping = threading.Event()

    def WatchBlocks(  # noqa: N802  the name is gRPC's
        self, request: pb.WatchBlocksRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchBlocksResponse]:
        if request.pool not in ("", self._pool):
            context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"this gateway watches {self._pool!r}; start another one for {request.pool!r}",
            )
        watch, salt_sent = self._client.watch_blocks(), False
        while context.is_active() and not self._stopping.is_set():
            updates = watch.poll()
            for update in updates:
                response = response_of(update)
                if not salt_sent:
                    response.tenant_salt, salt_sent = watch.salt, True
                yield response
            if not updates:
                self._stopping.wait(self._interval_s)
        context.abort(grpc.StatusCode.UNAVAILABLE, "the gateway stops: connect again")

    def stop(self) -> None:
        """End every stream soon."""
        self._stopping.set()


class BlockServer:
    """A listening BlockEventsService."""

    def __init__(
        self, servicer: BlockServicer, host: str, port: int, tls: TlsFiles | None = None
    ) -> None:
        """Listen; port 0: any free one. With `tls` only readers with a certificate of its CA get
        in: what they read holds the tenant's salt. ConfigError when the port is taken or the
        certificates are unfit."""
        self._servicer = servicer
        self._threads = ThreadPoolExecutor(BLOCK_STREAMS_MAX, thread_name_prefix="memkv-events")
        self._server = grpc.server(
            self._threads, options=list(SERVER_OPTIONS), maximum_concurrent_rpcs=BLOCK_STREAMS_MAX
        )
        pb_grpc.add_BlockEventsServiceServicer_to_server(servicer, self._server)
        address = join_endpoint(host, port)
        try:
            self.port = open_port(self._server, address, tls, asks_certificate=True)
        except RuntimeError as error:
            raise ConfigError(
                f"cannot listen on {address}: another process has the port, or the address is not "
                "this machine's"
            ) from error
        self.endpoint = join_endpoint(host, self.port)
        self._server.start()

    def stop(self) -> None:
        """Stop listening and end the streams."""
        self._servicer.stop()
        self._server.stop(None).wait()
        self._threads.shutdown()
