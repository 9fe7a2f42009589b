"""Callers by token: what is asked of the API server, what is remembered, and for how long."""

import asyncio
import base64
import json

import pytest

from memkv.errors import RetryLater
from memkv.metadata import bearer
from memkv.metadata.bearer import NEGATIVE_S, POSITIVE_S, ServiceAccount, TokenCallers
from memkv.metadata.callers import Caller, Forbidden, Presented, Unauthenticated
from memkv.metadata.tenants import TenantMap
from memkv.testing.clock import ManualClock
from memkv.testing.tokens import FakeReviewer, make_token
from memkv.wire.ticket import Rights

NODE = ServiceAccount("default", "pool-node")
TENANTS = TenantMap({("team-a", "batch"): "shared"})


class Bench:
    """Callers over a fake reviewer and a clock that moves when told."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.reviewer = FakeReviewer()
        self.callers = TokenCallers(self.reviewer, lambda: TENANTS, self.clock, frozenset({NODE}))

    def token(self, name: str = "engine", life_s: int = 3600) -> str:
        token = make_token(f"team-a/{name}", expires_s=self.clock.wall_s() + life_s)
        self.reviewer.trust(token, name=name)
        return token

    async def call(self, token: str, address: str = "") -> Caller:
        return await self.callers.caller(Presented(token, address=address))

    def run(self, token: str) -> Caller:
        return asyncio.run(self.call(token))

    def pass_s(self, seconds: int) -> None:
        self.clock.advance_ms(seconds * 1000)


def test_token_of_a_serviceaccount_has_its_namespaces_tenant() -> None:
    bench = Bench()
    caller = bench.run(bench.token())
    assert caller == Caller("system:serviceaccount:team-a:engine", "team-a")
    assert not caller.any_tenant


def test_tenants_of_the_pool_name_another() -> None:
    bench = Bench()
    assert bench.run(bench.token("batch")).tenant == "shared"


def test_node_has_the_right_to_move_slots_and_no_other() -> None:
    bench = Bench()
    token = bench.token()
    bench.reviewer.trust(token, NODE.namespace, NODE.name)
    bench.reviewer.forbidden.add(NODE)  # its right comes from the pool, not from a role
    assert bench.run(token).rights == Rights.PEER


def encoded(body: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(body).encode()).rstrip(b"=").decode()


NOW = ManualClock().wall_s()
LATER = NOW + 3600
REFUSED_UNASKED = {
    "none": "",
    "garbage": "garbage",
    "two parts": "a.b",
    "four parts": "a.b.c.d",
    "not base64": "a.!!!.c",
    "not JSON": "a." + base64.urlsafe_b64encode(b"{").decode() + ".c",
    "a JSON list": f"a.{encoded([1])}.c",
    "no audience": f"a.{encoded({'exp': LATER})}.c",
    "no end": f"a.{encoded({'aud': ['memkv-metadata']})}.c",
    "an end that is none": f"a.{encoded({'aud': ['memkv-metadata'], 'exp': 'soon'})}.c",
    "audience of the API server": make_token(
        expires_s=LATER, audience="https://kubernetes.default.svc"
    ),
    "no audience in the list": make_token(expires_s=LATER, audience=[]),
    "a longer audience": make_token(expires_s=LATER, audience="memkv-metadata-2"),
    "ended now": make_token(expires_s=NOW),
    "ended long ago": make_token(expires_s=1),
    "far too long": "a." + "b" * 20_000 + ".c",
    "nested beyond reason": "a." + base64.urlsafe_b64encode(b"[" * 9000).decode() + ".c",
}


@pytest.mark.parametrize("case", REFUSED_UNASKED)
def test_token_that_cannot_be_good_is_refused_without_asking(case: str) -> None:
    bench = Bench()
    bench.reviewer.trust(REFUSED_UNASKED[case])
    with pytest.raises(Unauthenticated):
        bench.run(REFUSED_UNASKED[case])
    assert bench.reviewer.asked == 0


def test_foreign_token_is_refused_and_remembered_for_a_moment() -> None:
    bench = Bench()
    token = make_token(expires_s=LATER)
    for _ in range(3):
        with pytest.raises(Unauthenticated, match="does not know"):
            bench.run(token)
    assert bench.reviewer.asked == 1
    bench.reviewer.trust(token)
    bench.pass_s(NEGATIVE_S)
    assert bench.run(token).tenant == "team-a"


def test_account_without_the_right_is_refused_until_it_has_it() -> None:
    bench = Bench()
    token = bench.token()
    account = bench.reviewer.accounts[token]
    bench.reviewer.forbidden.add(account)
    with pytest.raises(Forbidden, match="connect"):
        bench.run(token)
    bench.reviewer.forbidden.clear()
    with pytest.raises(Forbidden):
        bench.run(token)
    bench.pass_s(NEGATIVE_S)
    bench.run(token)


def test_good_token_is_reviewed_once_a_minute() -> None:
    bench = Bench()
    token = bench.token()
    bench.run(token)
    bench.pass_s(POSITIVE_S - 1)
    bench.run(token)
    assert bench.reviewer.asked == 1
    bench.pass_s(1)
    bench.run(token)
    assert bench.reviewer.asked == 2


def test_token_that_was_taken_back_is_refused_after_a_minute() -> None:
    bench = Bench()
    token = bench.token()
    bench.run(token)
    bench.reviewer.accounts.clear()
    bench.pass_s(POSITIVE_S)
    with pytest.raises(Unauthenticated):
        bench.run(token)


def test_token_that_ends_sooner_is_remembered_no_longer() -> None:
    bench = Bench()
    token = bench.token(life_s=20)
    bench.run(token)
    bench.pass_s(20)
    with pytest.raises(Unauthenticated, match="has ended"):
        bench.run(token)


def test_without_the_api_server_known_tokens_pass_until_their_end() -> None:
    bench = Bench()
    token = bench.token(life_s=3600)
    bench.run(token)
    bench.reviewer.away = True
    bench.pass_s(3599)
    assert bench.run(token).tenant == "team-a"
    bench.pass_s(1)
    with pytest.raises(Unauthenticated, match="has ended"):
        bench.run(token)


def test_without_the_api_server_it_is_not_asked_with_every_call() -> None:
    bench = Bench()
    token = bench.token()
    bench.run(token)
    bench.reviewer.away = True
    bench.pass_s(POSITIVE_S)
    for _ in range(5):
        bench.run(token)
    assert bench.reviewer.asked == 2


def test_without_the_api_server_unknown_tokens_come_later() -> None:
    bench = Bench()
    bench.reviewer.away = True
    with pytest.raises(RetryLater, match="nobody can tell"):
        bench.run(bench.token())
    bench.reviewer.away = False
    bench.run(bench.token())


def test_without_the_api_server_a_refused_token_stays_refused() -> None:
    bench = Bench()
    token = make_token(expires_s=LATER)
    with pytest.raises(Unauthenticated):
        bench.run(token)
    bench.reviewer.away = True
    bench.pass_s(NEGATIVE_S)
    with pytest.raises(RetryLater):
        bench.run(token)


async def held(bench: Bench, token: str, calls: int) -> list[asyncio.Task[Caller]]:
    """Return calls that wait for a review."""
    bench.reviewer.gate = asyncio.Event()
    tasks = [asyncio.create_task(bench.call(token)) for _ in range(calls)]
    while not bench.reviewer.asked:
        await asyncio.sleep(0)
    return tasks


def test_calls_with_one_token_share_a_review() -> None:
    bench = Bench()
    token = bench.token()

    async def scene() -> None:
        tasks = await held(bench, token, 50)
        assert bench.reviewer.gate is not None
        bench.reviewer.gate.set()
        assert len({caller.subject for caller in await asyncio.gather(*tasks)}) == 1

    asyncio.run(scene())
    assert bench.reviewer.asked == 1


def test_call_that_is_given_up_does_not_end_the_review_of_others() -> None:
    bench = Bench()
    token = bench.token()

    async def scene() -> None:
        first, second = await held(bench, token, 2)
        first.cancel()
        assert bench.reviewer.gate is not None
        bench.reviewer.gate.set()
        assert (await second).tenant == "team-a"

    asyncio.run(scene())


def test_flood_of_tokens_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    monkeypatch.setattr(bearer, "REVIEWS_MAX", 3)
    tokens = [make_token(f"x/{n}", expires_s=LATER) for n in range(10)]

    async def scene() -> list[BaseException | Caller]:
        bench.reviewer.gate = asyncio.Event()
        tasks = [asyncio.create_task(bench.call(token)) for token in tokens]
        while bench.reviewer.asked < 3:
            await asyncio.sleep(0)
        bench.reviewer.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(scene())
    assert bench.reviewer.asked == 3
    assert sum(isinstance(result, RetryLater) for result in results) == 7


async def flood(bench: Bench, address: str, count: int) -> list[asyncio.Task[Caller]]:
    """Return calls with invented tokens, all of which a slow API server is asked for or refused."""
    bench.reviewer.gate = asyncio.Event()
    tasks = [
        asyncio.create_task(bench.call(make_token(f"x/{n}", expires_s=LATER), address))
        for n in range(count)
    ]
    while sum(task.done() for task in tasks) + bench.reviewer.asked < count:
        await asyncio.sleep(0)
    return tasks


def test_flood_from_one_address_does_not_lock_out_new_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    monkeypatch.setattr(bearer, "REVIEWS_MAX", 8)
    token = bench.token()

    async def scene() -> None:
        tasks = await flood(bench, "10.0.0.66", 20)
        asked = bench.reviewer.asked
        assert asked == bearer.REVIEWS_PER_ADDRESS_MAX
        client = asyncio.create_task(bench.call(token, "10.0.0.7"))
        while bench.reviewer.asked == asked:
            await asyncio.sleep(0)
        assert bench.reviewer.gate is not None
        bench.reviewer.gate.set()
        assert (await client).tenant == "team-a"
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(result, RetryLater) for result in results) == 20 - asked

    asyncio.run(scene())
    with pytest.raises(Unauthenticated):  # what was counted is given back
        asyncio.run(bench.call(make_token("x/again", expires_s=LATER), "10.0.0.66"))


def test_flood_does_not_keep_a_known_token_from_its_next_review(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    monkeypatch.setattr(bearer, "REVIEWS_MAX", 2)
    token = bench.token()
    bench.run(token)
    bench.pass_s(POSITIVE_S)

    async def scene() -> None:
        tasks = await flood(bench, "", 5)
        asked = bench.reviewer.asked
        client = asyncio.create_task(bench.call(token))
        while bench.reviewer.asked == asked:
            await asyncio.sleep(0)
        assert bench.reviewer.gate is not None
        bench.reviewer.gate.set()
        assert (await client).tenant == "team-a"
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(scene())


def test_flood_of_refusals_drops_no_token_that_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    monkeypatch.setattr(bearer, "CACHED_MAX", 2)
    monkeypatch.setattr(bearer, "REFUSED_MAX", 2)
    token = bench.token()
    bench.run(token)
    forged = [make_token(f"x/{n}", expires_s=LATER) for n in range(10)]
    for one in forged:
        with pytest.raises(Unauthenticated):
            bench.run(one)
    asked = bench.reviewer.asked
    bench.run(token)
    with pytest.raises(Unauthenticated):
        bench.run(forged[-1])
    assert bench.reviewer.asked == asked
    with pytest.raises(Unauthenticated):
        bench.run(forged[0])
    assert bench.reviewer.asked == asked + 1, "refusals are remembered without bound"


def test_memory_of_tokens_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    monkeypatch.setattr(bearer, "CACHED_MAX", 2)
    tokens = [bench.token(f"n{n}") for n in range(3)]
    for token in tokens:
        bench.run(token)
    bench.run(tokens[2])
    assert bench.reviewer.asked == 3
    bench.run(tokens[0])
    assert bench.reviewer.asked == 4


@pytest.mark.parametrize(
    "user",
    ["", "admin", "system:node:n1", "system:serviceaccount:", "system:serviceaccount:a",
     "system:serviceaccount:a:", "system:serviceaccount::b", "system:serviceaccount:a:b:c"],
)  # fmt: skip
def test_users_that_are_no_serviceaccounts_are_forbidden(user: str) -> None:
    with pytest.raises(Forbidden, match="no ServiceAccount"):
        ServiceAccount.of_user(user)


def test_a_token_for_the_usual_audience_is_refused_where_another_is_wanted() -> None:
    bench = Bench()
    bench.callers = TokenCallers(bench.reviewer, lambda: TENANTS, bench.clock, audience="kv.corp")
    with pytest.raises(Unauthenticated, match=r"mount one with audience kv\.corp"):
        bench.run(bench.token())
    token = make_token("team-a/engine", expires_s=bench.clock.wall_s() + 60, audience="kv.corp")
    bench.reviewer.trust(token, name="engine")
    assert bench.run(token).tenant == "team-a"
