"""The operator's own account on a real API server, with what the chart gives it and no more."""

import json
from pathlib import Path
from typing import cast

import yaml

from memkv.testing.waiting import eventually
from memkv_operator.run.process import Operator
from memkv_operator.testing.crds import Object, objects
from memkv_operator.testing.helm import documents, run, template

RIGHTS = ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ServiceAccount")
ACCOUNT = "memkv-operator"


def scope_flags(namespace: str) -> list[str]:
    """Return Helm's arguments of a release that looks after its own namespace."""
    values = (f"watchNamespaces={{{namespace}}}", f"namespaceOverride={namespace}")
    return [word for value in values for word in ("--set", value)]


def give_rights(helm: str, kubectl: list[str], namespace: str, *flags: str) -> None:
    """Make the account and roles of a release that looks after its own namespace. `flags`: of
    Helm, beside those."""
    manifests = documents(template(helm, *scope_flags(namespace), *flags))
    rights = [m for m in manifests if m["kind"] in RIGHTS]
    everything = json.dumps({"apiVersion": "v1", "kind": "List", "items": rights})
    done = run([*kubectl, "apply", "-f", "-"], everything)
    assert done.returncode == 0, done.stderr
    account = f"--as=system:serviceaccount:{namespace}:{ACCOUNT}"
    ask = [*kubectl, "auth", "can-i", "create", "leases.coordination.k8s.io", "-n", namespace]
    # API servers look roles up in a cache, which follows after a moment.
    eventually(lambda: run([*ask, account]).returncode == 0, f"{ACCOUNT} has its roles")


def as_operator(kubectl: list[str], admin: Path, namespace: str, to: Path) -> Path:
    """Write a kubeconfig that proves its reader as the operator's ServiceAccount."""
    done = run([*kubectl, "create", "token", ACCOUNT, "-n", namespace, "--duration=1h"])
    assert done.returncode == 0, done.stderr
    document = cast(Object, yaml.safe_load(admin.read_text()))
    for user in objects(document, "users"):
        user["user"] = {"token": done.stdout.strip()}
    to.write_text(yaml.safe_dump(document))
    return to


def refused(operator: Operator) -> list[str]:
    """Return the verbs that the API server has forbidden."""
    return [
        sample.labels["verb"]
        for metric in operator.metrics.registry.collect()
        if metric.name == "memkv_operator_api_requests"
        for sample in metric.samples
        if sample.labels.get("code") in ("401", "403") and sample.value
    ]
