"""The chart on a real API server: every object is taken, pods pass Pod Security `restricted`, the
operator's rights suffice for what it makes and for no more, releases come and go.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import yaml
from kubernetes import client

from memkv_operator.testing.crds import Object, child
from memkv_operator.testing.helm import (
    CHART,
    NAMESPACE,
    SCENARIOS,
    documents,
    run,
    template,
    values,
)

NAMESPACES = (NAMESPACE, "elsewhere", "team-a", "team-b")
OPERATOR = f"system:serviceaccount:{NAMESPACE}:memkv-operator"
ABSENT = ("monitoring.coreos.com", "nfd.k8s-sigs.io")  # APIs of others, which this server lacks


@pytest.fixture(scope="module")
def namespaces(kubectl: list[str]) -> None:
    """The namespaces that the scenarios name; the operator's is as strict as can be."""
    strict = {"pod-security.kubernetes.io/enforce": "restricted"}
    items: list[Object] = []
    for name in NAMESPACES:
        labels = strict if name == NAMESPACE else {}
        account: Object = {"name": "default", "namespace": name}  # made by a controller elsewhere
        items += [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}},
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account},
        ]
    everything = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    done = run([*kubectl, "apply", "-f", "-"], everything)
    assert done.returncode == 0, done.stderr


def is_known(manifest: Object) -> bool:
    return str(manifest["apiVersion"]).partition("/")[0] not in ABSENT


@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_object_is_taken(helm: str, kubectl: list[str], scenario: str) -> None:
    manifests = [m for m in documents(template(helm, *values(scenario))) if is_known(m)]
    assert manifests
    everything = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
    done = run([*kubectl, "apply", "--dry-run=server", "--validate=strict", "-f", "-"], everything)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(server dry run)") == len(manifests)
    # Storage pods lock memory and use files of the node, agents look at its disks; nothing else may
    # ask for more.
    asking = any(
        m["kind"] == "DaemonSet" and child(m, "metadata")["namespace"] == NAMESPACE
        for m in manifests
    )
    assert ("would violate" in done.stderr) == (asking or scenario.startswith("static"))


@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize("kind", ["Deployment", "Job", "Pod"])
def test_pods_pass_pod_security_restricted(helm: str, kubectl: list[str], kind: str) -> None:
    """The operator's pod, the hook's and that of `helm test`, where anything less is refused."""
    (manifest,) = [m for m in documents(template(helm)) if m["kind"] == kind]
    spec = child(manifest, "spec") if kind == "Pod" else child(manifest, "spec", "template", "spec")
    pod: Object = {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "tried", "namespace": NAMESPACE},
        "spec": {name: value for name, value in spec.items() if name != "serviceAccountName"},
    }  # fmt: skip
    create = [*kubectl, "create", "--dry-run=server", "-f", "-"]
    done = run(create, json.dumps(pod))
    assert done.returncode == 0, done.stderr
    container = cast(list[Object], child(pod, "spec")["containers"])[0]
    container["securityContext"] = {"privileged": True}
    assert "violates PodSecurity" in run(create, json.dumps(pod)).stderr


@pytest.fixture(scope="module")
def release(helm: str, kubectl: list[str], kubeconfig: Path, namespaces: None) -> Iterator[str]:
    """The chart, installed. Its pods never run here: nothing waits for them."""
    command = [helm, "--kubeconfig", str(kubeconfig), "-n", NAMESPACE]
    done = run([*command, "install", "memkv", str(CHART)])
    assert done.returncode == 0, done.stderr
    yield " ".join(command)
    run([*command, "uninstall", "memkv", "--no-hooks"])


def may(kubectl: list[str], verb: str, what: str, *arguments: str) -> bool:
    """Return whether the operator may do something."""
    done = run([*kubectl, "auth", "can-i", verb, what, f"--as={OPERATOR}", *arguments])
    return done.stdout.strip() == "yes"


def try_as_operator(kubectl: list[str], manifest: Object) -> str:
    """Return "" when the operator could make this, else why not."""
    done = run(
        [*kubectl, f"--as={OPERATOR}", "apply", "--server-side", "--dry-run=server",
         "--force-conflicts", "--field-manager=memkv-operator", "-f", "-"],
        json.dumps(manifest),
    )  # fmt: skip
    return done.stderr if done.returncode else ""


def role(kind: str, rule: Object) -> Object:
    meta: Object = {"name": "pool-a-metadata"}
    if kind == "Role":
        meta["namespace"] = "team-a"
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": meta,
        "rules": [rule],
    }  # fmt: skip


@pytest.mark.usefixtures("release")
def test_the_operator_has_the_rights_it_needs_and_no_more(kubectl: list[str]) -> None:
    everywhere = "--all-namespaces"
    for verb, what in [
        ("create", "daemonsets.apps"), ("patch", "deployments.apps"), ("delete", "services"),
        ("patch", "configmaps"), ("delete", "pods"), ("create", "poddisruptionbudgets.policy"),
        ("update", "memkvshardmaps.memkv.io"), ("patch", "memkvpools.memkv.io/status"),
        ("watch", "memkvpools.memkv.io"), ("create", "events.events.k8s.io"),
    ]:  # fmt: skip
        assert may(kubectl, verb, what, everywhere), f"{verb} {what}"
    for verb, what in [
        ("list", "secrets"), ("create", "pods"), ("create", "pods/exec"), ("delete", "nodes"),
        ("patch", "nodes"), ("create", "clusterrolebindings.rbac.authorization.k8s.io"),
        ("delete", "memkvpools.memkv.io"), ("create", "memkvpools.memkv.io"),
        ("impersonate", "users"),
    ]:  # fmt: skip
        assert not may(kubectl, verb, what, everywhere), f"{verb} {what}"
    assert may(kubectl, "list", "nodes")
    assert may(kubectl, "create", "leases.coordination.k8s.io", "-n", NAMESPACE)
    assert may(kubectl, "update", "leases.coordination.k8s.io/memkv-operator", "-n", NAMESPACE)
    assert not may(kubectl, "update", "leases.coordination.k8s.io/other", "-n", NAMESPACE)


@pytest.mark.usefixtures("release")
def test_the_operator_gives_metadata_pods_only_what_it_has(kubectl: list[str]) -> None:
    """It makes a Role for each pool; the API server keeps it from making a larger one."""
    read: Object = {
        "apiGroups": ["memkv.io"], "resources": ["memkvpools", "memkvshardmaps"],
        "verbs": ["get", "list", "watch"],
    }  # fmt: skip
    assert not try_as_operator(kubectl, role("Role", read))
    secrets: Object = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"]}
    assert "is attempting to grant RBAC permissions" in try_as_operator(
        kubectl, role("Role", secrets)
    )
    assert "forbidden" in try_as_operator(kubectl, role("ClusterRole", read))


@pytest.mark.usefixtures("release")
def test_the_operator_enters_metadata_pods_in_one_binding_only(kubectl: list[str]) -> None:
    """Of tokenreviews and subjectaccessreviews, by the ClusterRole that it may bind."""
    subject: Object = {"kind": "ServiceAccount", "name": "pool-a-metadata", "namespace": "team-a"}

    def binding(name: str, role_name: str) -> Object:
        return {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": name}, "subjects": [subject],
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role_name
            },
        }  # fmt: skip

    own = f"{NAMESPACE}-memkv-metadata"
    assert not try_as_operator(kubectl, binding(own, own))
    assert "forbidden" in try_as_operator(kubectl, binding("another", own))
    assert "forbidden" in try_as_operator(kubectl, binding(own, "cluster-admin"))


@pytest.mark.usefixtures("release")
def test_users_get_rights_by_the_roles_they_have(kubectl: list[str], api: client.ApiClient) -> None:
    def allowed(cluster_role: str, verb: str, what: str) -> bool:
        found = client.RbacAuthorizationV1Api(api).read_cluster_role(cluster_role)
        plural = what.partition(".")[0]
        return any(
            "memkv.io" in (rule.api_groups or [])
            and plural in (rule.resources or [])
            and verb in rule.verbs
            for rule in found.rules or []
        )

    # Without controllers nothing aggregates: read the roles that would be.
    name = f"{NAMESPACE}-memkv"
    assert allowed(f"{name}-view", "list", "memkvpools")
    assert not allowed(f"{name}-view", "get", "memkvpools/connect")
    assert allowed(f"{name}-edit", "create", "memkvpools")
    assert allowed(f"{name}-edit", "get", "memkvpools/connect")
    assert not allowed(f"{name}-edit", "patch", "memkvnodes")
    assert allowed(f"{name}-admin", "patch", "memkvnodes")
    assert not any(
        allowed(f"{name}-{role}", verb, "memkvshardmaps")
        for role in ("view", "edit", "admin")
        for verb in ("create", "update", "patch", "delete")
    )


def test_release_is_upgraded_and_leaves_pools_behind(release: str, kubectl: list[str]) -> None:
    command = release.split()
    pool = yaml.safe_load((CHART.parents[1] / "deploy/samples/pool.yaml").read_text())
    wait = [*kubectl, "wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"]
    assert run(wait).returncode == 0
    done = run([*kubectl, "apply", "-n", "team-a", "-f", "-"], json.dumps(pool))
    assert done.returncode == 0, done.stderr
    done = run([*command, "upgrade", "memkv", str(CHART), "--set", "replicaCount=3"])
    assert done.returncode == 0, done.stderr
    shown = run([*kubectl, "get", "deployment", "memkv-operator", "-n", NAMESPACE, "-o", "json"])
    assert child(json.loads(shown.stdout), "spec")["replicas"] == 3
    done = run([*command, "uninstall", "memkv", "--no-hooks"])  # no kubelet runs the hook here
    assert done.returncode == 0, done.stderr
    assert run([*kubectl, "get", "deployment", "memkv-operator", "-n", NAMESPACE]).returncode != 0
    kept = run([*kubectl, "get", "memkvpools", "-n", "team-a", "-o", "name"])
    assert kept.stdout.strip() == "memkvpool.memkv.io/pool-a"
    done = run([*command, "install", "memkv", str(CHART)])
    assert done.returncode == 0, done.stderr
    run([*kubectl, "delete", "memkvpool", "pool-a", "-n", "team-a"])


def uninstall_all(command: list[str]) -> None:
    for found in json.loads(run([*command, "list", "-A", "-o", "json"]).stdout):
        run([*command, "uninstall", found["name"], "-n", found["namespace"], "--no-hooks"])


@pytest.fixture
def alone(helm: str, kubeconfig: Path, namespaces: None) -> Iterator[list[str]]:
    """Helm's command; there is no release, and afterwards none is left."""
    command = [helm, "--kubeconfig", str(kubeconfig)]
    uninstall_all(command)
    yield command
    uninstall_all(command)


def test_two_operators_never_look_after_the_same_pools(alone: list[str]) -> None:
    """Each release says in its ClusterRole where its operator looks."""

    def refusal(verb: str, name: str, namespace: str, *flags: str) -> str:
        where = [name, str(CHART), "-n", namespace, "--set", "crds.install=false"]
        done = run([*alone, verb, *where, *(word for flag in flags for word in ("--set", flag))])
        return done.stderr if done.returncode else ""

    assert not refusal("install", "memkv", "elsewhere", "watchNamespaces={team-a}")
    assert "looks after team-a" in refusal("install", "two", NAMESPACE)
    both = "watchNamespaces={team-b,team-a}"
    assert "names team-a, which" in refusal("install", "two", NAMESPACE, both)
    other = refusal("install", "two", "elsewhere", "watchNamespaces={team-b}")
    assert "has an operator already" in other
    assert not refusal("install", "two", NAMESPACE, "watchNamespaces={team-b}")
    # Itself is no other release, whatever its names become; and what grows is compared again.
    renamed = ["watchNamespaces={team-a}", "fullnameOverride=other"]
    assert not refusal("upgrade", "memkv", "elsewhere", *renamed)
    assert "names team-b" in refusal("upgrade", "memkv", "elsewhere", both)
    assert "looks after team-b" in refusal("upgrade", "memkv", "elsewhere")
