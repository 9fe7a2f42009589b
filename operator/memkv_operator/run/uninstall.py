"""What the chart runs before it takes the operator away, so that no pool and no namespace hangs.

A pool has a finalizer that only an operator takes away. So uninstalling is refused while there are
pools. When it is forced, this process stops the operator, leads in its place, so that nobody gives
the finalizers back, and takes them away. The pools' pods, maps and blocks stay as they are.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from memkv.clock import Clock, SystemClock
from memkv.errors import ConfigError, RetryLater
from memkv.metadata.kubernetes.api_server import ApiServer, connect_api_server
from memkv.metadata.kubernetes.errors import Conflict, Forbidden, NotFound
from memkv.metadata.kubernetes.json_values import JsonValue, Manifest, Reader
from memkv_operator.api.meta import ObjectMeta, read_meta
from memkv_operator.api.names import DEPLOYMENTS, FINALIZER, POOLS
from memkv_operator.kube.leadership import Leadership
from memkv_operator.kube.lease import LeaseConfig
from memkv_operator.kube.objects import Objects

log = logging.getLogger("memkv.operator.uninstall")

CONFLICTS_MAX = 10  # of one pool: its writers are people and controllers, not the stopped operator
NAMES_MAX = 10  # in a message

Connect = Callable[[], Awaitable[ApiServer]]


@dataclass(frozen=True, slots=True)
class UninstallSettings:
    """What is to be uninstalled."""

    lease: LeaseConfig
    deployment: str
    """Of the operator, in the namespace of the Lease."""
    namespaces: tuple[str, ...] = ()
    """Empty: all."""
    force: bool = False


async def prepare_uninstall(objects: Objects, settings: UninstallSettings, clock: Clock) -> None:
    """Return when the operator may go. ConfigError naming the pools there are, unless forced."""
    pools = await _pools(objects, settings.namespaces)
    if not pools:
        log.info("there are no pools")
        return
    if not settings.force:
        names = ", ".join(sorted(pool.key for pool in pools)[:NAMES_MAX])
        more = f" and {len(pools) - NAMES_MAX} more" if len(pools) > NAMES_MAX else ""
        raise ConfigError(
            f"there are pools: {names}{more}. Without an operator they could not be deleted any "
            "more. Delete them first (kubectl delete memkvpool NAME -n NAMESPACE); or leave them "
            "behind, running and unattended: helm upgrade with --set uninstall.force=true, then "
            "helm uninstall"
        )
    place = settings.lease.namespace, settings.deployment
    await objects.merge(DEPLOYMENTS, *place, {"spec": {"replicas": 0}})

    async def release(transitions: int) -> None:
        for pool in await _pools(objects, settings.namespaces):
            await _release(objects, pool)
            log.info("pool %s is left behind", pool.key)

    await Leadership(settings.lease, objects, clock).lead(release)


async def _pools(objects: Objects, namespaces: tuple[str, ...]) -> list[ObjectMeta]:
    found: list[ObjectMeta] = []
    for namespace in namespaces or ("",):
        try:
            listing = await objects.list(POOLS, namespace)
        except NotFound:
            return []  # the CRDs are gone, and every pool with them
        except Forbidden as error:
            if not namespace:
                raise
            # With a namespace its Role goes: no pool is there that this operator could let go.
            log.warning(
                "pools of namespace %s are not looked at: %s. If the namespace is there, look "
                "for yourself: kubectl get memkvpools -n %s",
                namespace,
                error,
                namespace,
            )
            continue
        found += [read_meta(Reader(item)) for item in listing.items]
    return found


async def _release(objects: Objects, pool: ObjectMeta) -> None:
    """Take our finalizer away. Others' stay: the list is swapped against what was read."""
    for _ in range(CONFLICTS_MAX):
        found = await objects.get(POOLS, pool.namespace, pool.name)
        if found is None:
            return
        meta = read_meta(Reader(found))
        if FINALIZER not in meta.finalizers:
            return
        others: list[JsonValue] = [name for name in meta.finalizers if name != FINALIZER]
        patch: Manifest = {
            "metadata": {"finalizers": others, "resourceVersion": meta.resource_version}
        }
        try:
            await objects.merge(POOLS, meta.namespace, meta.name, patch)
        except Conflict:
            continue
        except NotFound:
            return
        return
    raise RetryLater(f"pool {pool.key} is written by others all the time; try again")


def run_uninstall(settings: UninstallSettings, connect: Connect = connect_api_server) -> None:
    """Run to the end. MemKVError with what to do."""

    async def run() -> None:
        api = await connect()
        try:
            await prepare_uninstall(Objects(api), settings, SystemClock())
        finally:
            await api.close()

    asyncio.run(run())
