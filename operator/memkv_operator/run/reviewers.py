"""Lets metadata pods of pools check tokens: enters their ServiceAccounts in one ClusterRoleBinding.

The chart makes the binding without subjects; the operator may change this one and no other.
"""

import logging
from collections.abc import Mapping, Sequence

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
LOOK_AGAIN_S = 5.0  # while a pool could not be entered


class Reviewers:
    """Who is entered."""

    def __init__(self, objects: Objects, clock: Clock, binding: str) -> None:
        """`binding`: name of the ClusterRoleBinding; empty: somebody else grants the rights."""
        self._objects = objects
        self._clock = clock
        self._binding = binding
        self._looks: dict[str, tuple[str, int]] = {}
        """UID of a pool -> what is wrong, and when to look again, in nanoseconds."""

    async def enter(self, pool: Pool) -> str:
        """Enter a pool's metadata pods, and look from time to time whether they still are. Return
        why they cannot be, and the fix; empty: nothing is wrong. RetryLater when somebody else
        writes just now."""
        if not self._binding:
            return ""
        problem, again_ns = self._looks.get(pool.meta.uid, ("", 0))
        now_ns = self._clock.monotonic_ns()
        if pool.meta.uid in self._looks and now_ns < again_ns:
            return problem
        try:
            await self._change(pool, present=True)
            problem = ""
        except ConfigError as error:
            problem = str(error)
        pause_s = LOOK_AGAIN_S if problem else LOOK_S
        self._looks[pool.meta.uid] = problem, now_ns + int(pause_s * 1e9)
        return problem

    async def leave(self, pool: Pool) -> None:
        """Take them out. A failure is logged: it must not hold up the end of a pool."""
        self._looks.pop(pool.meta.uid, None)
        if not self._binding:
            return
        try:
            await self._change(pool, present=False)
        except MemKVError as error:
            log.warning("pool %s stays in %s: %s", pool.key, self._binding, error)

    async def _change(self, pool: Pool, *, present: bool) -> None:
        found = await self._objects.get(CLUSTER_ROLE_BINDINGS, "", self._binding)
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
        if len(after) == len(before):
            return
        patch: Manifest = {
            "metadata": {"resourceVersion": read_meta(reader).resource_version},
            "subjects": after,
        }
        try:
            await self._objects.merge(CLUSTER_ROLE_BINDINGS, "", self._binding, patch)
        except Conflict as error:
            raise RetryLater(f"{self._binding} was changed by somebody else") from error


def _is_same(one: Mapping[str, JsonValue], other: Manifest) -> bool:
    """The API server adds fields that are not compared."""
    return all(one.get(key) == value for key, value in other.items())
