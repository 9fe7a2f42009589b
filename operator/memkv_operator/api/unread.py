"""A pool whose spec this version cannot read: what is known of it all the same, so that it keeps
what it has, stands in no other pool's way, and goes as its deletionPolicy says."""

from collections.abc import Sequence
from dataclasses import replace

from memkv.errors import ConfigError
from memkv.metadata.kubernetes.json_values import JsonObject, Reader
from memkv_operator.api.meta import read_meta
from memkv_operator.api.pool import Pool, PoolSpec, read_pool

_OF_POOL = ("network", "ports")
_OF_GROUP = ("name", "nodeSelector", "workers", "memory", "storage", "network")
"""What the claims of a pool depend on: its drives, directories and ports."""


def read_rest(manifest: JsonObject, before: Pool | None) -> Pool:
    """Return the pool as it was when it could be read last (`before`), else what of it can be read;
    without any group where that is too little. It is paused: it gets nothing new."""
    reader = Reader(manifest)
    meta = read_meta(reader)
    spec = before.spec if before is not None and before.meta.uid == meta.uid else _rest(reader)
    spec = replace(spec, paused=True, wipes_drives=_wipes(reader))
    return Pool(meta, spec, reader.object("status").value)


def _rest(reader: Reader) -> PoolSpec:
    try:
        spec = reader.object("spec")
        groups = [_only(group, _OF_GROUP) for group in spec.objects("nodeGroups")]
        rest: JsonObject = {**_only(spec, _OF_POOL), "nodeGroups": groups}
        return read_pool({**reader.value, "spec": rest}).spec
    except ConfigError:
        return PoolSpec(())


def _only(reader: Reader, names: Sequence[str]) -> JsonObject:
    return {name: reader.value[name] for name in names if name in reader.value}


def _wipes(reader: Reader) -> bool:
    try:
        return reader.object("spec").object("deletionPolicy").text("drives") == "Wipe"
    except ConfigError:
        return False
