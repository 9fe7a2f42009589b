"""What the operator asks a real API server for, and whether it takes the deploy samples."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from memkv.clock import SystemClock
from memkv.metadata.kubernetes.api_server import MERGE
from memkv_operator.api.names import EVENTS
from memkv_operator.api.pool import read_pool
from memkv_operator.kube.objects import Objects
from memkv_operator.plan.preflight import ENFORCE_LABEL
from memkv_operator.run.preflight import Preflights
from memkv_operator.testing.real_api import RealApi

OnRealApi = Callable[[Callable[[RealApi], Awaitable[None]]], None]
SAMPLES = sorted((Path(__file__).resolve().parents[2] / "deploy/samples").glob("*.yaml"))


def event(name: str, about: str, note: str) -> Any:
    return {
        "apiVersion": EVENTS.api_version, "kind": EVENTS.kind, "metadata": {"name": name},
        "eventTime": "2026-01-01T00:00:00.000000Z", "reason": "FailedCreate", "type": "Warning",
        "reportingController": "daemonset-controller", "reportingInstance": "x",
        "action": "Create", "note": note,
        "regarding": {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": about},
    }  # fmt: skip


def test_refused_pods_and_pod_security_are_found(on_real_api: OnRealApi) -> None:
    async def test(real: RealApi) -> None:
        namespace = f"/api/v1/namespaces/{real.namespace}"
        labels = {"metadata": {"labels": {ENFORCE_LABEL: "baseline"}}}
        await real.api.request("PATCH", namespace, None, labels, MERGE)
        for name, about, note in (
            ("a", "pool-a-flash", "an older reason"),
            ("b", "other", "not ours"),
            ("c", "pool-a-flash", "exceeded quota"),
        ):
            body = event(name, about, note)
            body["regarding"]["namespace"] = real.namespace
            await real.api.request("POST", EVENTS.path(real.namespace), None, body)
        meta: Any = {"name": "pool-a", "namespace": real.namespace, "uid": "u"}
        pool = read_pool({"metadata": meta, "spec": {}})
        live: Any = {
            ("DaemonSet", "pool-a-flash"): {
                "metadata": {"labels": {"memkv.io/node-group": "flash"}},
                "status": {"desiredNumberScheduled": 1, "currentNumberScheduled": 0},
            }
        }
        found = await Preflights(Objects(real.api), SystemClock()).look(pool, live)
        assert found.enforced_level == "baseline"
        assert found.failed_creates == {"flash": "exceeded quota"}

    on_real_api(test)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_samples_are_accepted(on_real_api: OnRealApi, path: Path) -> None:
    async def test(real: RealApi) -> None:
        sample = yaml.safe_load(path.read_text())
        # Also what no sample uses.
        sample["spec"]["nodeGroups"][0]["seccompProfile"] = "Localhost"
        query = {"fieldValidation": "Strict"}
        made: Any = await real.api.request("POST", f"{real.root}/memkvpools", query, sample)
        assert read_pool(made).spec.groups[0].seccomp == "Localhost"

    on_real_api(test)
