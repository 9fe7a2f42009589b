"""The kind PodMonitor as a test's own: as strict as the Prometheus operator's in what is used."""

import asyncio
import contextlib
from typing import Any

from memkv.errors import RetryLater
from memkv.metadata.kubernetes.api_server import APPLY
from memkv.metadata.kubernetes.errors import NotFound
from memkv_operator.api.names import POD_MONITORS
from memkv_operator.testing import real_api
from memkv_operator.testing.cluster import pause
from memkv_operator.testing.real_api import RealApi

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
    query = {"fieldManager": "test", "force": "true"}
    path = f"{real_api.CRDS}/{CRD['metadata']['name']}"
    await real.api.request("PATCH", path, query, CRD, APPLY)
    async with asyncio.timeout(real_api.IN_TIME_S):
        while True:
            with contextlib.suppress(NotFound, RetryLater):
                await real.api.request("GET", POD_MONITORS.path(real.namespace))
                return
            await pause(0.1)
