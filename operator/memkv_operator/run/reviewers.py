"""Lets metadata pods of pools check tokens: enters their ServiceAccounts in one ClusterRoleBinding.

The chart makes the binding without subjects; the operator may change this one and no other.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from memkv.clock import Clock
from memkv.errors import ConfigError, MemKVError, RetryLater
from memkv.metadata.kubernetes.errors import Conflict
from memkv.metadata.kubernetes.json_values import JsonValue, Manifest, Reader
from memkv_operator.api.meta import read_meta
from memkv_operator.api.names import CLUSTER_ROLE_BINDINGS, SERVICE_ACCOUNTS, metadata_name
from memkv_operator.api.pool import Pool
from memkv_operator.kube.objects import Objects

log = logging.getLogger("memkv.operator.reviewers")

LOOK_S = 300.0  # the binding is not watched, and anybody may write to it
LOOK_AGAIN_S = 5.0  # while a pool could not be entered or taken out
_SUFFIX = metadata_name("")


@dataclass(frozen=True, slots=True)
class _Look:
    """What came of the last look at whether a pool is entered as it should be."""

    present: bool
    problem: str
    again_ns: int


class Reviewers:
    """Who is entered."""

    def __init__(self, objects: Objects, clock: Clock, binding: str) -> None:
        """`binding`: name of the ClusterRoleBinding; empty: somebody else grants the rights."""
        self._objects = objects
        self._clock = clock
        self._binding = binding
        self._looks: dict[str, _Look] = {}
        """By UID of the pool."""

    async def enter(self, pool: Pool) -> str:
        """Enter a pool's metadata pods, and look from time to time whether they still are. Return
        why they cannot be, and the fix; empty: nothing is wrong. RetryLater when somebody else
        writes just now."""
        if not self._binding:
            return ""
        if (known := self._known(pool, present=True)) is not None:
            return known.problem
        try:
            await self._change(pool, present=True)
            return self._looked(pool, "", present=True)
        except ConfigError as error:
            return self._looked(pool, str(error), present=True)

    async def leave(self, pool: Pool) -> None:
        """Take out a pool that goes or asks for no tokens any more. A failure is logged and tried
        again: it must not hold up the pool."""
        if not self._binding or self._known(pool, present=False) is not None:
            return
        try:
            await self._change(pool, present=False)
            self._looked(pool, "", present=False)
        except MemKVError as error:
            before = self._looks.get(pool.meta.uid)
            if before is None or before.problem != str(error):
                log.warning("pool %s stays in %s: %s", pool.key, self._binding, error)
            self._looked(pool, str(error), present=False)

    async def prune(self, pools: Collection[str], namespaces: Collection[str]) -> None:
        """Take out the metadata pods of pools that are gone, as one is that was deleted while no
        operator ran. MemKVError when that cannot be done now.

        `pools`: keys of all there are in `namespaces`; no namespaces: in all of them.
        """
        if not self._binding:
            return
        found = await self._objects.get(CLUSTER_ROLE_BINDINGS, "", self._binding)
        if found is None:
            return
        before = Reader(found).objects("subjects")
        gone = [one for one in before if _is_of_no_pool(one, pools, namespaces)]
        if not gone:
            return
        names = ", ".join(f"{one.text('namespace')}/{one.text('name')}" for one in gone)
        log.info("%s are taken out of %s: their pools are gone", names, self._binding)
        await self._write(Reader(found), [one.value for one in before if one not in gone])

    def _known(self, pool: Pool, *, present: bool) -> _Look | None:
        look = self._looks.get(pool.meta.uid)
        fresh = look is not None and self._clock.monotonic_ns() < look.again_ns
        return look if look is not None and fresh and look.present == present else None

    def _looked(self, pool: Pool, problem: str, *, present: bool) -> str:
        pause_s = LOOK_AGAIN_S if problem else LOOK_S
        again_ns = self._clock.monotonic_ns() + int(pause_s * 1e9)
        self._looks[pool.meta.uid] = _Look(present, problem, again_ns)
        return problem

    async def _change(self, pool: Pool, *, present: bool) -> None:
        found = await self._objects.get(CLUSTER_ROLE_BINDINGS, "", self._binding)
        if found is None and not present:
            return
        if found is None:
            raise ConfigError(
                f"there is no ClusterRoleBinding {self._binding}, so metadata pods cannot check "
                "tokens: upgrade the operator's chart with rbac.create=true; or bind "
                f"ServiceAccount {metadata_name(pool.meta.name)} of namespace "
                f"{pool.meta.namespace} to ClusterRole system:auth-delegator yourself, and start "
                "the operator without MEMKV_METADATA_BINDING"
            )
        reader = Reader(found)
        mine: Manifest = {
            "kind": SERVICE_ACCOUNTS.kind,
            "name": metadata_name(pool.meta.name),
            "namespace": pool.meta.namespace,
        }
        before = [subject.value for subject in reader.objects("subjects")]
        others: Sequence[JsonValue] = [one for one in before if not _is_same(one, mine)]
        after = [*others, mine] if present else others
        if len(after) != len(before):
            await self._write(reader, after)

    async def _write(self, binding: Reader, subjects: Sequence[JsonValue]) -> None:
        patch: Manifest = {
            "metadata": {"resourceVersion": read_meta(binding).resource_version},
            "subjects": list(subjects),
        }
        try:
            await self._objects.merge(CLUSTER_ROLE_BINDINGS, "", self._binding, patch)
        except Conflict as error:
            raise RetryLater(f"{self._binding} was changed by somebody else") from error


def _is_of_no_pool(one: Reader, pools: Collection[str], namespaces: Collection[str]) -> bool:
    """Whether a subject is one that an operator entered, of a pool that is not there. Anybody may
    have entered others."""
    name, namespace = one.text("name"), one.text("namespace")
    ours = one.text("kind") == SERVICE_ACCOUNTS.kind and name.endswith(_SUFFIX)
    seen = not namespaces or namespace in namespaces
    return ours and seen and f"{namespace}/{name.removesuffix(_SUFFIX)}" not in pools


def _is_same(one: Mapping[str, JsonValue], other: Manifest) -> bool:
    """The API server adds fields that are not compared."""
    return all(one.get(key) == value for key, value in other.items())
