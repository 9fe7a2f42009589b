"""The Secrets of a pool while the key of its tickets changes. An API server in memory."""

from datetime import timedelta

import pytest

from memkv.errors import RetryLater
from memkv.testing.api_server import Request
from memkv_operator.api.names import REVOKE_TICKET_KEY, ROTATE_CA, ROTATE_TICKET_KEY
from memkv_operator.identity.ticket_keys import (
    LIFE,
    OVERLAP,
    TICKET_KEY,
    id_of,
    raw_public_key,
)
from memkv_operator.identity.trust import GRACE
from memkv_operator.plan.ticket_keys import KeyPhase
from memkv_operator.run.identities import LOOK_S
from memkv_operator.testing.identity_world import World, run

HOUR = timedelta(hours=1)
SOON = GRACE + timedelta(minutes=3)


def signs(world: World) -> bytes:
    """Return the public key of what metadata pods sign with."""
    return raw_public_key(world.secret("metadata-identity")[TICKET_KEY])


def check(world: World) -> None:
    """Every node takes what is signed, by its spec and by its file."""
    for name, ids in world.said().items():
        assert id_of(signs(world)) in ids, name
    assert world.secret("node-identity")["tickets.pub"]


async def begun(world: World) -> bytes:
    """Have two nodes that know the first key; return it."""
    world.nodes = {"n1": (), "n2": ()}
    await world.look()
    check(world)
    return signs(world)


async def until(world: World, phase: KeyPhase, time: timedelta) -> None:
    for _ in range(int(time.total_seconds()) // 60):
        identity = await world.look()
        check(world)
        if identity.view.tickets.phase is phase:
            return
        world.advance(60)
    raise AssertionError(f"{identity.view.tickets} and not {phase}")


@pytest.mark.parametrize("cause", ["annotation", "age"])
def test_a_key_is_replaced_in_phases_by_its_age_and_once_for_each_request(cause: str) -> None:
    async def test(world: World) -> None:
        old = await begun(world)
        if cause == "annotation":
            world.annotations[ROTATE_TICKET_KEY] = "now"
        else:
            world.advance((LIFE - HOUR).total_seconds())
            await world.look()  # certificates are renewed meanwhile
            assert signs(world) == old
            world.advance(2 * HOUR.total_seconds())
        await until(world, KeyPhase.ANNOUNCED, HOUR)
        assert signs(world) == old
        await until(world, KeyPhase.RETIRING, SOON)
        new = signs(world)
        assert new != old
        world.advance(60)
        await world.look()  # it finds the Secrets as it wrote them: the time begins
        world.advance((OVERLAP - HOUR).total_seconds())
        await until(world, KeyPhase.RETIRING, SOON)
        assert all(id_of(old) in ids for ids in world.said().values())
        await until(world, KeyPhase.STEADY, 3 * HOUR)
        await world.look()
        assert all(ids == {id_of(new)} for ids in world.said().values())
        writes = len(world.api.writes)
        await world.look_for(HOUR)
        assert len(world.api.writes) == writes + 60  # the ConfigMap, which this test always writes
        assert "next-tickets.key" not in world.secret("identity")

    run(test)


def test_a_key_waits_for_a_node_that_is_silent() -> None:
    async def test(world: World) -> None:
        old = await begun(world)
        world.silent = {"n2"}
        world.annotations[ROTATE_TICKET_KEY] = "now"
        identity = await world.look_for(HOUR)
        assert (identity.view.tickets.phase, *identity.view.tickets.waiting) == (
            KeyPhase.ANNOUNCED, "n2",
        )  # fmt: skip
        assert signs(world) == old
        world.silent = set()
        await until(world, KeyPhase.RETIRING, HOUR)

    run(test)


def test_nothing_happens_before_nodes_were_asked() -> None:
    async def test(world: World) -> None:
        old = await begun(world)
        world.annotations[ROTATE_TICKET_KEY] = "now"
        for _ in range(60):
            identity = await world.identities.ensure(world.pool, None)
            world.advance(60)
        assert identity.view.tickets.phase is KeyPhase.ANNOUNCED
        assert not identity.view.tickets.informed
        assert signs(world) == old

    run(test)


def test_a_revoked_key_is_refused_at_once_and_until_files_forgot_it() -> None:
    async def test(world: World) -> None:
        old = await begun(world)
        world.silent = {"n2"}
        world.annotations[REVOKE_TICKET_KEY] = "it leaked"
        identity = await world.look()
        assert identity.view.tickets.phase is KeyPhase.REVOKED
        assert identity.view.ticket_keys[1].public_key == old
        assert identity.view.ticket_keys[1].not_after_s == 1
        new = signs(world)
        assert new != old
        assert world.said() == {"n1": {id_of(new)}, "n2": {id_of(old)}}
        identity = await world.look_for(HOUR)
        assert list(identity.view.tickets.waiting) == ["n2"]
        world.silent = set()
        await world.look()
        world.advance(10)
        assert (await world.look()).view.tickets.waiting == ()
        await until(world, KeyPhase.STEADY, HOUR)
        await world.look_for(HOUR)
        assert signs(world) == new

    run(test)


@pytest.mark.parametrize("annotation", [ROTATE_TICKET_KEY, REVOKE_TICKET_KEY])
def test_a_new_pool_changes_no_key_for_its_annotation(annotation: str) -> None:
    async def test(world: World) -> None:
        world.annotations[annotation] = "copied from another pool"
        old = await begun(world)
        await world.look_for(HOUR)
        assert signs(world) == old

    run(test)


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_any_failed_request_and_any_new_leader_leaves_a_change_that_goes_on(done: bool) -> None:
    """The Nth request of each look fails, for each N; then another operator leads."""

    async def test(world: World) -> None:
        old, failed = await begun(world), 0
        world.annotations[ROTATE_TICKET_KEY] = "now"
        for number in range(1, 60):
            at = len(world.api.requests) + 1 + number % 8

            def fault(request: Request, after: bool, at: int = at) -> Exception | None:
                return RetryLater("500") if request.number == at and after is done else None

            world.api.fault = fault
            try:
                await world.look()
            except RetryLater:
                failed += 1
            check(world)
            world.new_leader()
            world.advance(GRACE.total_seconds() if number < 30 else 2 * HOUR.total_seconds())
        assert failed >= 20
        world.api.fault = lambda request, after: None
        await world.look_for(HOUR)
        assert signs(world) != old
        assert all(ids == {id_of(signs(world))} for ids in world.said().values())

    run(test)


def test_key_and_authority_change_side_by_side() -> None:
    async def test(world: World) -> None:
        old = await begun(world)
        bundle = world.bundle
        world.annotations.update({ROTATE_CA: "now", ROTATE_TICKET_KEY: "now"})
        await until(world, KeyPhase.RETIRING, HOUR)
        await world.look_for(HOUR)
        assert world.bundle != bundle
        assert signs(world) != old

    run(test)


def test_an_hour_before_a_phase_ends_nobody_looks_more_often_than_usual() -> None:
    async def test(world: World) -> None:
        await begun(world)
        world.annotations[ROTATE_TICKET_KEY] = "now"
        await until(world, KeyPhase.RETIRING, HOUR)
        world.advance(60)
        identity = await world.look()
        pause_s = (identity.look_again_ns - world.clock.monotonic_ns()) / 1e9
        assert pause_s == pytest.approx(LOOK_S)

    run(test)
