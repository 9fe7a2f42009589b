"""Tenants of a pool on a real API server: what is shown is what the schema has a place for."""

from collections.abc import Awaitable, Callable

from memkv.metadata.kubernetes.api_server import MERGE
from memkv.tenant import tenant_tag
from memkv_operator.testing.cluster import POOL
from memkv_operator.testing.real_api import RealApi

OnRealApi = Callable[[Callable[[RealApi], Awaitable[None]]], None]
TENANTS = [
    {"name": "search", "flashQuota": "4Gi", "memoryQuota": "512Mi"},
    {"name": "batch", "flashQuota": "1Gi"},
]


def test_tenants_are_guaranteed_shown_and_dropped(on_real_api: OnRealApi) -> None:
    async def test(real: RealApi) -> None:
        await real.add_nodes(2)
        await real.make_pool(tenants=TENANTS)

        async def shown() -> bool:
            status = (await real.pool()).get("status", {})
            search = {"name": "search", "flashGuaranteed": "4Gi", "memoryGuaranteed": "512Mi"}
            found = status.get("tenants", [{}])[0]
            holds = {c["type"]: c["status"] for c in status.get("conditions", [])}
            return search.items() <= found.items() and holds.get("QuotasGuaranteed") == "True"

        async def dropped() -> bool:
            found = await real.map()
            generations = dict(found.tenant_generations) if found is not None else {}
            return generations == {tenant_tag("batch"): 2}

        async with real.operator():
            await real.until(real.is_ready)
            await real.until(shown)
            patch = {"spec": {"tenants": TENANTS[:1]}}
            await real.api.request("PATCH", f"{real.root}/memkvpools/{POOL}", None, patch, MERGE)
            await real.until(dropped)
            await real.until(shown)

    on_real_api(test)
