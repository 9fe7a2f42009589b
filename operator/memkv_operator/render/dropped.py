"""Keeps a DaemonSet away from nodes that were removed from a pool by name."""

from collections.abc import Collection, Mapping

from memkv.metadata.kubernetes.json_values import JsonValue, Manifest

NODE_NAME = "metadata.name"


def without_nodes(daemon_set: Manifest, names: Collection[str]) -> Manifest:
    """Return a DaemonSet that runs on no node of these names.

    Its pods on other nodes stay what they are: the hash of the template, which tells old pods from
    new ones, does not cover this.
    """
    if not names:
        return daemon_set
    # A field selector takes one value; all those of one term must hold.
    others: list[JsonValue] = [
        {"key": NODE_NAME, "operator": "NotIn", "values": [name]} for name in sorted(names)
    ]
    required: Manifest = {"nodeSelectorTerms": [{"matchFields": others}]}
    affinity: Manifest = {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}
    }
    spec = _object(daemon_set["spec"])
    template = _object(spec["template"])
    pod = {**_object(template["spec"]), "affinity": affinity}
    return {**daemon_set, "spec": {**spec, "template": {**template, "spec": pod}}}


def _object(value: JsonValue) -> Mapping[str, JsonValue]:
    assert isinstance(value, Mapping)
    return value
