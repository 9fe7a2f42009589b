"""Wrong certificates at an agent's door: refused before anything of the node is told or changed."""

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from memkv.agent.admin import AgentServer
from memkv.agent.agent_config import AgentConfig
from memkv.metadata.certificates import AGENT_NAME, AGENT_OPERATOR_NAME, admin_name
from memkv.testing.certificates import Authority
from memkv.testing.wrong_certificates import WRONG, Door
from memkv_proto import agent_admin_pb2 as pb
from memkv_proto import agent_admin_pb2_grpc as pb_grpc

WAIT_S = 60


class Agent:
    """An agent's admin service that notes what gets through."""

    def __init__(self, folder: Path) -> None:
        self.calls: list[str] = []
        authority = Authority()
        files = authority.files(folder, "agent", AGENT_NAME)
        config = AgentConfig("n", folder, admin_port=0, http_port=0, tls=files)
        self.server = AgentServer(config, self._facts, self._apply)
        others = (admin_name("default/pool"), "memkv-operator.memkv")
        self.door = Door(
            self.server.endpoint, authority, AGENT_NAME, AGENT_OPERATOR_NAME, others
        )

    def _facts(self) -> pb.AgentFacts:
        self.calls.append("GetAgentFacts")
        return pb.AgentFacts()

    def _apply(self, spec: pb.AgentSpec) -> None:
        self.calls.append("ApplyAgent")


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    running = Agent(tmp_path_factory.mktemp("agent"))
    yield running
    running.server.stop()


RPCS: dict[str, Callable[[grpc.Channel], object]] = {
    "GetAgentFacts": lambda channel: pb_grpc.AgentAdminStub(channel).GetAgentFacts(
        pb.GetAgentFactsRequest(), timeout=WAIT_S
    ),
    "ApplyAgent": lambda channel: pb_grpc.AgentAdminStub(channel).ApplyAgent(
        pb.ApplyAgentRequest(spec=pb.AgentSpec(generation=7)), timeout=WAIT_S
    ),
}


@pytest.mark.parametrize("rpc", RPCS)
@pytest.mark.parametrize("case", WRONG)
def test_agent_admin_refuses(agent: Agent, tmp_path: Path, rpc: str, case: str) -> None:
    assert agent.door.refusal(agent.door.wrong(tmp_path, case), RPCS[rpc]) is WRONG[case]
    assert agent.calls == []


def test_agent_admin_lets_the_operator_in(tmp_path: Path) -> None:
    """So the others are refused for what they show."""
    agent = Agent(tmp_path)
    try:
        for call in RPCS.values():
            assert agent.door.refusal(agent.door.right(tmp_path), call) is None
        assert agent.calls == list(RPCS)
    finally:
        agent.server.stop()
