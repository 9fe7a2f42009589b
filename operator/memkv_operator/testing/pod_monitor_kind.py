"""The kind PodMonitor as a test's own: as strict as the Prometheus operator's in what is used."""

from typing import Any

from memkv_operator.api.names import POD_MONITORS
from memkv_operator.testing.real_api import RealApi, install_kind

TEXT = {"type": "string"}
RELABELING = {
    "type": "object",
    "properties": {"sourceLabels": {"type": "array", "items": TEXT}, "targetLabel": TEXT},
}
ENDPOINT = {
    "type": "object",
    "properties": {"port": TEXT, "relabelings": {"type": "array", "items": RELABELING}},
}
SPEC_SCHEMA = {
    "type": "object",
    "required": ["selector", "podMetricsEndpoints"],
    "properties": {
        "podMetricsEndpoints": {"type": "array", "items": ENDPOINT},
        "selector": {
            "type": "object",
            "properties": {"matchLabels": {"type": "object", "additionalProperties": TEXT}},
        },
    },
}
CRD: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": f"{POD_MONITORS.plural}.{POD_MONITORS.group}"},
    "spec": {
        "group": POD_MONITORS.group,
        "names": {"kind": "PodMonitor", "plural": "podmonitors", "singular": "podmonitor"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {"type": "object", "properties": {"spec": SPEC_SCHEMA}}
                },
            }
        ],
    },
}


async def install_pod_monitors(real: RealApi) -> None:
    """Make the kind, and wait until it is served."""
    await install_kind(real, CRD, POD_MONITORS)
