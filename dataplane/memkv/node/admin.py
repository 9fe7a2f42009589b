"""memkv.v1.NodeAdmin: the control channel of a node, for its publisher or operator only."""

import threading
from collections.abc import Callable
from pathlib import Path

import grpc
from google.protobuf.message import DecodeError

from memkv.errors import CallerError, ConfigError
from memkv.limits import WORKERS_PER_NODE_MAX
from memkv.metadata.admin_port import AdminPort, check_caller, is_next, refuse_spec
from memkv.metadata.files import write_durably
from memkv.node.messages import Quota
from memkv.node.node_config import NodeConfig
from memkv.tenant import check_tenant_name
from memkv.wire.signed import TicketKey, checked_keys, key_name
from memkv_proto import node_admin_pb2 as pb
from memkv_proto import node_admin_pb2_grpc as pb_grpc


def ticket_keys_of(spec: pb.NodeSpec) -> tuple[TicketKey, ...]:
    """Return the keys of a spec. ConfigError for one that is no key, or has another's id."""
    keys = [
        TicketKey(
            given.public_key, given.not_after.seconds if given.HasField("not_after") else None
        )
        for given in spec.ticket_keys
    ]
    for given, key in zip(spec.ticket_keys, keys, strict=True):
        if given.key_id not in ("", key_name(key.key_id)):
            raise ConfigError(
                f"ticket key {given.key_id!r} has the id {key_name(key.key_id)}: ids are made from "
                "the public key; leave it empty or correct it"
            )
    return checked_keys(keys)


def quotas_of(spec: pb.NodeSpec, worker: int) -> tuple[Quota, ...]:
    """Return what a spec guarantees tenants on the worker of this position, by name."""
    return tuple(
        Quota(given.tenant, given.flash_bytes, given.memory_bytes)
        for given in sorted(spec.quotas, key=lambda given: given.tenant)
        if not given.HasField("worker") or given.worker == worker
    )


def check_quotas(spec: pb.NodeSpec) -> None:
    """Raise ConfigError for quotas of nobody, or two of one tenant on one worker."""
    try:
        for given in spec.quotas:
            check_tenant_name(given.tenant)
    except CallerError as error:
        raise ConfigError(str(error)) from error
    for worker in range(WORKERS_PER_NODE_MAX):
        tenants = [quota.tenant for quota in quotas_of(spec, worker)]
        if len(tenants) > len(set(tenants)):
            raise ConfigError(f"worker {worker} has two quotas of one tenant: give one of each")


class SpecKeeper:
    """The NodeSpec in force. On disk before it is acknowledged. Thread-safe."""

    def __init__(self, path: Path) -> None:
        """Read the kept one. ConfigError when it is damaged."""
        self._path = path
        self._lock = threading.Lock()
        self._spec = pb.NodeSpec()
        try:
            self._spec.ParseFromString(path.read_bytes())
        except FileNotFoundError:
            pass  # a new node: nothing was ever applied
        except DecodeError as error:
            raise ConfigError(
                f"the node's spec {path} is damaged: remove it; the operator applies it again"
            ) from error

    @property
    def spec(self) -> pb.NodeSpec:
        """The spec in force; generation 0: none was given. Do not change it."""
        with self._lock:
            return self._spec

    def apply(self, spec: pb.NodeSpec) -> str:
        """Keep a spec. Returns what waits for a restart of the workers, "" for nothing.

        ValueError when it is older than the one in force, or another one of the same generation;
        ConfigError for ticket keys that are none, and for impossible quotas.
        """
        ticket_keys_of(spec)
        check_quotas(spec)
        with self._lock:
            before = self._spec
            if not is_next(spec, before):
                return ""
            write_durably(self._path, spec.SerializeToString(deterministic=True))
            self._spec = pb.NodeSpec()
            self._spec.CopyFrom(spec)
            waits = list(before.drives) != list(spec.drives)
        return "drives: in effect when the workers start again" if waits else ""


class AdminServicer(pb_grpc.NodeAdminServicer):
    """Answers the two calls."""

    def __init__(
        self,
        facts: Callable[[], pb.GetFactsResponse],
        specs: SpecKeeper,
        applied: Callable[[], None],
        caller_name: str = "",
    ) -> None:
        """`applied` is called after a spec came into force. `caller_name`: in the certificate of
        the only one who may call; empty: anyone may (no TLS)."""
        self._caller_name = caller_name
        self._facts = facts
        self._specs = specs
        self._applied = applied

    def GetFacts(  # noqa: N802  the name is gRPC's
        self, request: pb.GetFactsRequest, context: grpc.ServicerContext
    ) -> pb.GetFactsResponse:
        self._check_caller(context)
        return self._facts()

    def Apply(  # noqa: N802  the name is gRPC's
        self, request: pb.ApplyRequest, context: grpc.ServicerContext
    ) -> pb.ApplyResponse:
        self._check_caller(context)
        try:
            pending = self._specs.apply(request.spec)
        except (ConfigError, ValueError, OSError) as error:
            refuse_spec(context, error, "the state folder")
        self._applied()
        return pb.ApplyResponse(spec_generation=request.spec.generation, pending=pending)

    def _check_caller(self, context: grpc.ServicerContext) -> None:
        """Refuse nodes and clients: their certificates are of the same CA."""
        check_caller(
            context,
            self._caller_name,
            "only the pool's publisher or operator may call: a certificate of the CA with the "
            f"name {self._caller_name} is needed",
        )


class AdminServer(AdminPort):
    """A listening NodeAdmin."""

    def __init__(self, config: NodeConfig, servicer: AdminServicer) -> None:
        """Listen. ConfigError when the port is taken."""

        def serve(server: grpc.Server) -> None:
            pb_grpc.add_NodeAdminServicer_to_server(servicer, server)

        super().__init__(config.admin_host, config.admin_port, config.tls, serve)
