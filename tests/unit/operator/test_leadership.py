"""The Lease is kept over a dead connection, and beside a busy event loop."""

import asyncio
import contextlib
import threading
from collections.abc import Collection

import pytest

from memkv.metadata.kubernetes.api_server import ApiServer
from memkv.metadata.kubernetes.errors import Away, NotFound
from memkv.metadata.kubernetes.json_values import JsonObject
from memkv.testing.api_server import FakeApiServer
from memkv.testing.simulated_time import LoopClock, run_simulated
from memkv_operator.kube.leadership import Leadership, LeadershipLost
from memkv_operator.kube.lease import LeaseConfig
from memkv_operator.kube.objects import Objects
from memkv_operator.kube.side_api import SideApi
from memkv_operator.testing.passing_api import Call, PassingApi


class Hanging(PassingApi):
    """Some requests are never answered, or only in vain."""

    def __init__(
        self,
        hangs: Collection[int] = (),
        done_unheard: Collection[int] = (),
        fails: Collection[int] = (),
    ) -> None:
        """`done_unheard`: the server does these, and the answer is lost."""
        super().__init__(FakeApiServer())
        self._hangs, self._done_unheard, self._fails = hangs, done_unheard, fails
        self.asked = 0

    async def send(self, call: Call) -> JsonObject:
        self.asked += 1
        number = self.asked
        if number in self._hangs:
            await asyncio.Event().wait()
        if number in self._fails:
            raise Away("500")
        answer = await super().send(call)
        if number in self._done_unheard:
            raise Away("no answer in time")
        return answer


async def lead_for_a_minute(api: Hanging) -> None:
    async def work(transitions: int) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 60)

    leadership = Leadership(LeaseConfig("ns", "lease", "a"), Objects(api), LoopClock())
    await leadership.lead(work)


def test_one_request_that_hangs_does_not_cost_the_lease() -> None:
    api = Hanging(hangs={5})
    run_simulated(lead_for_a_minute(api))
    assert api.asked > 20


def test_a_lost_answer_and_a_failed_look_after_it_do_not_cost_the_lease() -> None:
    """The renewal after the lost answer meets a 409, and the look at who wrote it fails."""
    api = Hanging(done_unheard={6}, fails={8})
    run_simulated(lead_for_a_minute(api))
    assert api.asked > 20


def test_leadership_ends_when_nobody_answers() -> None:
    with pytest.raises(LeadershipLost, match="in time"):
        run_simulated(lead_for_a_minute(Hanging(hangs=set(range(5, 1000)))))


def test_requests_go_on_in_a_thread_while_their_callers_loop_is_busy() -> None:
    served_in: list[str] = []
    served = threading.Event()

    class Slow(PassingApi):
        async def send(self, call: Call) -> JsonObject:
            for _ in range(20):  # turns of the loop, as an exchange over a socket has
                await asyncio.sleep(0)
            served_in.append(threading.current_thread().name)
            served.set()
            return await super().send(call)

    async def connect() -> ApiServer:
        return Slow(FakeApiServer())

    async def main() -> None:
        side = SideApi(connect)
        asking = asyncio.create_task(side.request("GET", "/api/v1/nodes"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert served.wait(30)  # and this loop does nothing meanwhile
        assert served_in == ["lease"]
        assert (await asking)["items"] == []
        with pytest.raises(NotFound):
            await side.request("GET", "/api/v1/nodes/none")
        await side.close()

    asyncio.run(main())
    assert "lease" not in {thread.name for thread in threading.enumerate()}
