"""memkv.v1.AgentAdmin: the control channel of an agent, for the operator only."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn, cast

import grpc

from memkv.agent.agent_config import AgentConfig
from memkv.errors import ConfigError
from memkv.metadata.certificates import AGENT_OPERATOR_NAME, names_of, server_credentials
from memkv.metadata.endpoint import SERVER_OPTIONS, join_endpoint
from memkv_proto import agent_admin_pb2 as pb
from memkv_proto import agent_admin_pb2_grpc as pb_grpc

CALLS_MAX = 16  # the operator's leader polls; the rest is refused
_THREADS = 4


class AgentServicer(pb_grpc.AgentAdminServicer):
    """Answers the two calls."""

    def __init__(
        self,
        facts: Callable[[], pb.AgentFacts],
        apply: Callable[[pb.AgentSpec], None],
        caller_name: str,
    ) -> None:
        """`apply` raises ConfigError, ValueError and OSError as AgentState.apply. `caller_name`: in
        the certificate of the only one who may call; empty: anyone may (no TLS)."""
        self._facts = facts
        self._apply = apply
        self._caller_name = caller_name

    def GetAgentFacts(  # noqa: N802  the name is gRPC's
        self, request: pb.GetAgentFactsRequest, context: grpc.ServicerContext
    ) -> pb.GetAgentFactsResponse:
        self._check_caller(context)
        return pb.GetAgentFactsResponse(facts=self._facts())

    def ApplyAgent(  # noqa: N802  the name is gRPC's
        self, request: pb.ApplyAgentRequest, context: grpc.ServicerContext
    ) -> pb.ApplyAgentResponse:
        self._check_caller(context)
        try:
            self._apply(request.spec)
        except ConfigError as error:
            _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except ValueError as error:
            _refuse(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except OSError as error:
            message = f"cannot keep the spec: {error.strerror}; free space in the agent's folder"
            _refuse(context, grpc.StatusCode.UNAVAILABLE, message)
        return pb.ApplyAgentResponse(spec_generation=request.spec.generation)

    def _check_caller(self, context: grpc.ServicerContext) -> None:
        """Refuse other agents: their certificate is of the same CA."""
        # The stubs say bytes; what comes are lists of them.
        verified = cast("Mapping[str, Iterable[bytes]]", context.auth_context())
        if self._caller_name and self._caller_name not in names_of(verified):
            message = (
                f"only the operator may call: a certificate of the agents' CA with the name"
                f" {self._caller_name} is needed"
            )
            _refuse(context, grpc.StatusCode.PERMISSION_DENIED, message)


def _refuse(context: grpc.ServicerContext, code: grpc.StatusCode, message: str) -> NoReturn:
    context.abort(code, message)
    raise AssertionError("abort returned")


class AgentServer:
    """A listening AgentAdmin."""

    def __init__(
        self,
        config: AgentConfig,
        facts: Callable[[], pb.AgentFacts],
        apply: Callable[[pb.AgentSpec], None],
    ) -> None:
        """Listen. ConfigError when the port is taken or the certificates are unfit."""
        caller_name = AGENT_OPERATOR_NAME if config.tls is not None else ""
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="memkv-admin")
        self._server = grpc.server(
            self._threads, options=list(SERVER_OPTIONS), maximum_concurrent_rpcs=CALLS_MAX
        )
        servicer = AgentServicer(facts, apply, caller_name)
        pb_grpc.add_AgentAdminServicer_to_server(servicer, self._server)
        address = join_endpoint(config.host, config.admin_port)
        try:
            if config.tls is None:
                self.port = self._server.add_insecure_port(address)
            else:
                credentials = server_credentials(config.tls, asks_certificate=True)
                self.port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise ConfigError(
                f"the admin port cannot listen on {address}: another process has the port, or the "
                "address is not this machine's"
            ) from error
        self.endpoint = join_endpoint(config.host, self.port)
        self._server.start()

    def stop(self) -> None:
        """Stop listening; calls under way are cut."""
        self._server.stop(None).wait()
        self._threads.shutdown()
