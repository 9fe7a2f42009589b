"""What an account asked of an API server, by its audit log, beside what its roles allow."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from memkv_operator.testing.crds import Object, child, objects

LOG = "audit.log"
POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}
FOR_EVERYBODY = ("authentication.k8s.io", "authorization.k8s.io")  # by the role system:basic-user
CREATED = 201


@dataclass(frozen=True, slots=True, order=True)
class Right:
    """One verb on one resource; `name`: of one object alone."""

    group: str
    resource: str
    """With its subresource, as memkvpools/status."""
    verb: str
    name: str = ""


def audit_flags(folder: Path) -> list[str]:
    """Write a policy; return the flags of an API server that keeps its log in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    policy = folder / "audit-policy.json"
    policy.write_text(json.dumps(POLICY))
    return [f"--audit-policy-file={policy}", f"--audit-log-path={folder / LOG}"]


def asked(log: Path, user: str) -> set[Right]:
    """Return every right that a user's requests needed, each with the object's name if it had one.

    An apply that made its object needed the right to create it as well.
    """
    found: set[Right] = set()
    for event in map(json.loads, log.read_text(encoding="utf-8").splitlines()):
        place = child(event, "objectRef")
        if child(event, "user").get("username") != user or not place:
            continue
        group = str(place.get("apiGroup", ""))
        if group in FOR_EVERYBODY:
            continue
        parts = [str(place[key]) for key in ("resource", "subresource") if place.get(key)]
        verb, name = str(event["verb"]), str(place.get("name", ""))
        found.add(Right(group, "/".join(parts), verb, name))
        if verb == "patch" and child(event, "responseStatus").get("code") == CREATED:
            found.add(Right(group, "/".join(parts), "create"))
    return found


def given(roles: Iterable[Object]) -> set[Right]:
    """Return every right of some roles."""
    return {
        Right(group, resource, verb, name)
        for role in roles
        for rule in objects(role, "rules")
        for group in _texts(rule, "apiGroups")
        for resource in _texts(rule, "resources")
        for verb in _texts(rule, "verbs")
        for name in _texts(rule, "resourceNames") or [""]
    }


def unused(rights: Iterable[Right], requests: Iterable[Right]) -> list[Right]:
    """Return the rights that no request needed."""
    requests = list(requests)
    return sorted(right for right in rights if not any(_covers(right, one) for one in requests))


def uncovered(rights: Iterable[Right], requests: Iterable[Right]) -> list[Right]:
    """Return the requests that no right allows."""
    rights = list(rights)
    return sorted(one for one in requests if not any(_covers(right, one) for right in rights))


def _covers(right: Right, request: Right) -> bool:
    same = (right.group, right.resource, right.verb) == (
        request.group, request.resource, request.verb,
    )  # fmt: skip
    return same and right.name in ("", request.name)


def _texts(rule: Object, key: str) -> list[str]:
    return cast(list[str], rule.get(key) or [])


def roles_of(manifests: Iterable[Object], account: str) -> Iterator[Object]:
    """Yield the roles that bindings among these manifests give a ServiceAccount."""
    manifests = list(manifests)
    bound = {
        (str(child(one, "roleRef")["kind"]), str(child(one, "roleRef")["name"]))
        for one in manifests
        if str(one["kind"]).endswith("RoleBinding")
        and any(subject["name"] == account for subject in objects(one, "subjects"))
    }
    for one in manifests:
        if (str(one["kind"]), str(child(one, "metadata")["name"])) in bound:
            yield one
