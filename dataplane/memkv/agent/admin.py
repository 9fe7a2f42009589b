"""memkv.v1.AgentAdmin: the control channel of an agent, for the operator only."""

from collections.abc import Callable

import grpc

from memkv.agent.agent_config import AgentConfig
from memkv.errors import ConfigError
from memkv.metadata.admin_port import AdminPort, check_caller, refuse_spec
from memkv.metadata.certificates import AGENT_OPERATOR_NAME
from memkv_proto import agent_admin_pb2 as pb
from memkv_proto import agent_admin_pb2_grpc as pb_grpc


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
        except (ConfigError, ValueError, OSError) as error:
            refuse_spec(context, error, "the agent's folder")
        return pb.ApplyAgentResponse(spec_generation=request.spec.generation)

    def _check_caller(self, context: grpc.ServicerContext) -> None:
        """Refuse other agents: their certificate is of the same CA."""
        check_caller(
            context,
            self._caller_name,
            "only the operator may call: a certificate of the agents' CA with the name "
            f"{self._caller_name} is needed",
        )


class AgentServer(AdminPort):
    """A listening AgentAdmin."""

    def __init__(
        self,
        config: AgentConfig,
        facts: Callable[[], pb.AgentFacts],
        apply: Callable[[pb.AgentSpec], None],
    ) -> None:
        """Listen. ConfigError when the port is taken or the certificates are unfit."""
        servicer = AgentServicer(
            facts, apply, AGENT_OPERATOR_NAME if config.tls is not None else ""
        )

        def serve(server: grpc.Server) -> None:
            pb_grpc.add_AgentAdminServicer_to_server(servicer, server)

        super().__init__(config.host, config.admin_port, config.tls, serve)
