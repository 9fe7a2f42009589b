"""The fixtures themselves: the server is real, and each test has its namespace."""

import json
import subprocess

import pytest
from kubernetes import client

DEADLINE_S = 120


def config_map(name: str, owner: client.V1ConfigMap | None = None) -> client.V1ConfigMap:
    meta = client.V1ObjectMeta(name=name)
    if owner is not None:
        known = owner.metadata
        assert known is not None
        assert known.name is not None
        assert known.uid is not None
        reference = client.V1OwnerReference(
            api_version="v1", kind="ConfigMap", name=known.name, uid=known.uid
        )
        meta.owner_references = [reference]
    return client.V1ConfigMap(metadata=meta, data={"a": "1"})


def test_server_is_of_the_version_that_kubectl_has(kubectl: list[str]) -> None:
    done = subprocess.run(
        [*kubectl, "version", "--output=json"], capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    minors = {found[side]["minor"] for side in ("clientVersion", "serverVersion")}
    assert len(minors) == 1, found


def test_objects_live_in_the_namespace_of_the_test(api: client.ApiClient, namespace: str) -> None:
    core = client.CoreV1Api(api)
    core.create_namespaced_config_map(namespace, config_map("one"))
    assert core.read_namespaced_config_map("one", namespace).data == {"a": "1"}


def test_an_account_without_a_role_may_do_nothing(api: client.ApiClient, namespace: str) -> None:
    """RBAC is on: a test of roles that passes because everything is allowed would prove nothing."""
    attributes = client.V1ResourceAttributes(namespace=namespace, verb="list", resource="secrets")
    spec = client.V1SubjectAccessReviewSpec(
        user=f"system:serviceaccount:{namespace}:nobody", resource_attributes=attributes
    )
    review = client.AuthorizationV1Api(api).create_subject_access_review(
        client.V1SubjectAccessReview(spec=spec)
    )
    assert review.status is not None
    assert review.status.allowed is False


@pytest.mark.usefixtures("controllers")
def test_what_has_no_owner_any_more_is_collected(
    api: client.ApiClient, namespace: str, kubectl: list[str]
) -> None:
    core = client.CoreV1Api(api)
    owner = core.create_namespaced_config_map(namespace, config_map("owner"))
    core.create_namespaced_config_map(namespace, config_map("child", owner))
    core.delete_namespaced_config_map("owner", namespace)
    wait = ["wait", "-n", namespace, "configmap/child", "--for=delete", f"--timeout={DEADLINE_S}s"]
    done = subprocess.run([*kubectl, *wait], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
