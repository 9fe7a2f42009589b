"""Lets metadata pods of pools check tokens: enters their ServiceAccounts in one ClusterRoleBinding.

The chart makes the binding without subjects; the operator may change this one and no other.
"""

import logging
from collections.abc import Mapping, Sequence

from memkv.errors import MemKVError, RetryLater
from memkv.metadata.kubernetes.errors import Conflict
from memkv.metadata.kubernetes.json_values import JsonValue, Manifest, Reader
from memkv_operator.api.meta import read_meta
from memkv_operator.api.names import CLUSTER_ROLE_BINDINGS, SERVICE_ACCOUNTS, metadata_name
from memkv_operator.api.pool import Pool
from memkv_operator.kube.objects import Objects

log = logging.getLogger("memkv.operator.reviewers")


class Reviewers:
    """Who is entered."""

    def __init__(self, objects: Objects, binding: str) -> None:
        """`binding`: name of the ClusterRoleBinding; empty: somebody else grants the rights."""
        self._objects = objects
        self._binding = binding
        self._entered: set[str] = set()

    async def enter(self, pool: Pool) -> None:
        """Enter a pool's metadata pods, once. RetryLater when somebody else writes just now."""
        if self._binding and pool.meta.uid not in self._entered:
            await self._change(pool, present=True)
            self._entered.add(pool.meta.uid)

    async def leave(self, pool: Pool) -> None:
        """Take them out. A failure is logged: it must not hold up the end of a pool."""
        self._entered.discard(pool.meta.uid)
        if not self._binding:
            return
        try:
            await self._change(pool, present=False)
        except MemKVError as error:
            log.warning("pool %s stays in %s: %s", pool.key, self._binding, error)

    async def _change(self, pool: Pool, *, present: bool) -> None:
        found = await self._objects.get(CLUSTER_ROLE_BINDINGS, "", self._binding)
        if found is None:
            raise RetryLater(
                f"there is no ClusterRoleBinding {self._binding}, so metadata pods cannot check "
                "tokens: upgrade the chart, or start the operator with another --metadata-binding"
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
