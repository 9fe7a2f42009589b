"""The control port of a node or an agent: gRPC in a few threads, for one caller alone."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn, TypeVar, cast

import grpc

from memkv.errors import ConfigError
from memkv.metadata.certificates import TlsFiles, names_of, open_port
from memkv.metadata.endpoint import SERVER_OPTIONS, join_endpoint
from memkv_proto import agent_admin_pb2, node_admin_pb2

CALLS_MAX = 16  # one publisher or operator polls; the rest is refused
_THREADS = 4
Spec = TypeVar("Spec", node_admin_pb2.NodeSpec, agent_admin_pb2.AgentSpec)


class AdminPort:
    """A listening control port."""

    def __init__(
        self, host: str, port: int, tls: TlsFiles | None, serve: Callable[[grpc.Server], None]
    ) -> None:
        """Listen; `serve` adds the service. ConfigError when the port is taken or the certificates
        are unfit."""
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="memkv-admin")
        self._server = grpc.server(
            self._threads, options=list(SERVER_OPTIONS), maximum_concurrent_rpcs=CALLS_MAX
        )
        serve(self._server)
        address = join_endpoint(host, port)
        try:
            self.port = open_port(self._server, address, tls, asks_certificate=True)
        except RuntimeError as error:
            raise ConfigError(
                f"the admin port cannot listen on {address}: another process has the port, or the "
                "address is not this machine's"
            ) from error
        self.endpoint = join_endpoint(host, self.port)
        self._server.start()

    def stop(self) -> None:
        """Stop listening; calls under way are cut."""
        self._server.stop(None).wait()
        self._threads.shutdown()


def check_caller(context: grpc.ServicerContext, caller_name: str, refusal: str) -> None:
    """Refuse with PERMISSION_DENIED who has no certificate with this name: others may have one of
    the same CA. Empty name: anyone may call (no TLS)."""
    # The stubs say bytes; what comes are lists of them.
    verified = cast("Mapping[str, Iterable[bytes]]", context.auth_context())
    if caller_name and caller_name not in names_of(verified):
        refuse(context, grpc.StatusCode.PERMISSION_DENIED, refusal)


def is_next(spec: Spec, before: Spec) -> bool:
    """Return whether a spec follows the one in force; False: it is that one once more. ValueError
    for an older one, another one of the same generation, and one without a generation."""
    if spec.generation < before.generation or spec.generation == 0:
        raise ValueError(
            f"generation {spec.generation} after {before.generation}: read the facts again and "
            "apply the newest"
        )
    if spec.generation > before.generation:
        return True
    if spec != before:
        raise ValueError(f"generation {spec.generation} is another spec here")
    return False


def refuse_spec(context: grpc.ServicerContext, error: Exception, folder: str) -> NoReturn:
    """End a call whose spec could not be kept: ConfigError for one that makes no sense, ValueError
    for one that is not the next, OSError of the `folder` it is kept in."""
    if isinstance(error, ConfigError):
        refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
    if isinstance(error, OSError):
        message = f"cannot keep the spec: {error.strerror}; free space in {folder}"
        refuse(context, grpc.StatusCode.UNAVAILABLE, message)
    refuse(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))


def refuse(context: grpc.ServicerContext, code: grpc.StatusCode, message: str) -> NoReturn:
    """End a call."""
    context.abort(code, message)
    raise AssertionError("abort returned")
