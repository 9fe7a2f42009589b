"""The key of a pool's tickets is replaced on a real API server, by operators that die meanwhile."""

from collections.abc import Awaitable, Callable
from typing import Any

from memkv_operator.api.names import REVOKE_TICKET_KEY, ROTATE_TICKET_KEY
from memkv_operator.identity.secrets import content_of
from memkv_operator.identity.ticket_keys import TICKET_KEY, id_of, raw_public_key
from memkv_operator.testing.cluster import POOL
from memkv_operator.testing.real_api import RealApi

OnRealApi = Callable[[Callable[[RealApi], Awaitable[None]]], None]
TLS = {
    "network": {"mode": "PodNetwork", "rdma": {"mode": "Disabled"}},
    "metadata": {"replicas": 1, "tls": {"mode": "SelfSigned"}, "auth": {"mode": "None"}},
}
SHORT: Any = {"authority_grace_s": 5, "ticket_overlap_s": 5}


async def signs(real: RealApi) -> str:
    """Return the id of the key that metadata pods sign with."""
    path = f"/api/v1/namespaces/{real.namespace}/secrets/{POOL}-metadata-identity"
    found = await real.get(path)
    assert found is not None
    return id_of(raw_public_key(content_of(found)[TICKET_KEY]))


def taken(real: RealApi, name: str) -> list[str]:
    return list(real.kubelets.nodes.of(name).facts().ticket_key_ids)


def reason_is(real: RealApi, reason: str) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        return bool((await real.condition("TicketKeysValid"))["reason"] == reason)

    return holds


def all_take(real: RealApi, count: int) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        key = await signs(real)
        return all(key in taken(real, n) and len(taken(real, n)) == count for n in real.names)

    return holds


def test_each_phase_has_another_operator_and_a_late_node_learns_the_key(
    on_real_api: OnRealApi,
) -> None:
    async def test(real: RealApi) -> None:
        await real.add_nodes(3)
        await real.make_pool(**TLS)
        async with real.operator("a", **SHORT):
            await real.until(real.is_ready)
            await real.until(all_take(real, 1))
            old = await signs(real)
            late = real.kubelets.nodes.of(real.names[2])
            late.up = False
            await real.kubelets.set_node_ready(late.name, False)
            await real.annotate(ROTATE_TICKET_KEY, "now")
            await real.until(reason_is(real, "TicketKeyAnnounced"))
            assert await signs(real) == old
        async with real.operator("b", **SHORT):
            await real.until(reason_is(real, "TicketKeyRetiring"))
            new = await signs(real)
            assert new != old
            assert all(set(taken(real, name)) == {old, new} for name in real.names[:2])
        async with real.operator("c", **SHORT):
            await real.until(reason_is(real, "Valid"))
            assert (await signs(real), taken(real, late.name)) == (new, [old])
            late.up = True
            await real.kubelets.set_node_ready(late.name, True)
            await real.until(all_take(real, 1))
            await real.until(real.is_ready)
        async with real.operator("d", **SHORT) as last:  # which finds the request answered

            def looked() -> float:
                labels = {"result": "ok"}
                name = "memkv_operator_reconcile_total"
                return last.metrics.registry.get_sample_value(name, labels) or 0

            async def looked_often() -> bool:
                last.look_at(f"{real.namespace}/{POOL}")
                return looked() > 20

            await real.until(looked_often)
            assert await signs(real) == new
            assert (await real.condition("TicketKeysValid"))["reason"] == "Valid"

    on_real_api(test)


def test_a_revoked_key_is_said_until_all_nodes_refuse_it(on_real_api: OnRealApi) -> None:
    async def test(real: RealApi) -> None:
        await real.add_nodes(2)
        await real.make_pool(**TLS, disruption={"nodeLostGraceSeconds": 600})
        async with real.operator(**SHORT):
            await real.until(real.is_ready)
            await real.until(all_take(real, 1))
            old = await signs(real)
            silent = real.kubelets.nodes.of(real.names[1])
            silent.up = False
            await real.annotate(REVOKE_TICKET_KEY, "it was in a log")

            async def said() -> bool:
                found = await real.condition("TicketKeysValid")
                assert found["status"] == "False" or found["reason"] == "Valid"
                return f"waiting for {silent.name} to refuse" in found.get("message", "")

            await real.until(said)
            assert (await real.condition("TicketKeysValid"))["reason"] == "TicketKeyRevoked"
            assert old not in taken(real, real.names[0])
            assert taken(real, silent.name) == [old]
            silent.up = True
            await real.until(reason_is(real, "Valid"))
            new = await signs(real)
            assert new != old
            await real.until(all_take(real, 1))

    on_real_api(test)
