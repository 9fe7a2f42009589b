"""What a real API server takes and refuses of MemKV's kinds, and that each rule is what refuses.

The cases are in cases/*.yaml. Each CRD is also made without its CEL rules, in an API group of its
own: then some case of each rule must come out differently, or the rule does nothing. Rules that say
the same in several places are taken away one at a time, for only the sentence tells who refused.
"""

import copy
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from memkv_operator.testing.crds import (
    Case,
    Object,
    Rule,
    child,
    kind_of,
    plural_of,
    read_cases,
    read_yaml,
    rules_of,
    without,
)

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "charts/memkv/files/crds"
CRDS = {kind_of(crd): crd for crd in map(read_yaml, sorted(FOLDER.glob("*.yaml")))}
CASES = [
    case for path in sorted(Path(__file__).parent.glob("cases/*.yaml")) for case in read_cases(path)
]
SAMPLES = sorted((ROOT / "deploy/samples").glob("*.yaml"))
GROUP = "memkv.io"
VERSION = "v1alpha1"
DEADLINE_S = 120
POLL_S = 0.05
PAUSE = threading.Event()  # never set: gives the server time between two questions
ESTABLISHED = "--for=condition=Established"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said."""

    accepted: bool
    text: str = ""
    spec: Object | None = None


class Server:
    """Sends manifests of one kind of one API group."""

    def __init__(self, api: client.ApiClient, namespace: str, crd: Object, group: str) -> None:
        self._objects = client.CustomObjectsApi(api)
        self._place = (group, VERSION, namespace, plural_of(crd))
        self._group = group

    def ask(self, case: Case) -> Answer:
        """Make what exists before, ask for the case without keeping it, clean up."""
        manifest = self._moved(case.manifest)
        if case.existing is None:
            return self._answer(lambda: self._create(manifest, "All"))
        before = self._create(self._moved(case.existing))
        meta = child(before, "metadata")
        name = str(meta["name"])
        child(manifest, "metadata")["resourceVersion"] = meta["resourceVersion"]
        try:
            return self._answer(lambda: self._replace(manifest, name))
        finally:
            self._objects.delete_namespaced_custom_object(*self._place, name)

    def _moved(self, manifest: Object) -> Object:
        moved = copy.deepcopy(manifest)
        moved["apiVersion"] = f"{self._group}/{VERSION}"
        child(moved, "metadata").pop("namespace", None)
        return moved

    def _create(self, manifest: Object, dry_run: str | None = None) -> Object:
        return cast(
            Object,
            self._objects.create_namespaced_custom_object(
                *self._place, manifest, field_validation="Strict", dry_run=dry_run
            ),
        )

    def _replace(self, manifest: Object, name: str) -> Object:
        return cast(
            Object,
            self._objects.replace_namespaced_custom_object(
                *self._place, name, manifest, field_validation="Strict", dry_run="All"
            ),
        )

    @staticmethod
    def _answer(ask: Callable[[], Object]) -> Answer:
        try:
            return Answer(True, spec=child(ask(), "spec"))
        except ApiException as error:
            if error.status not in (400, 422):
                raise
            return Answer(False, str(json.loads(error.body or "{}")["message"]))


def as_expected(case: Case, answer: Answer) -> bool:
    """Return whether the server said what the case says."""
    return answer.accepted == case.accept and case.message in answer.text


def install(kubectl: list[str], *crds: Object) -> None:
    """Make or update CRDs, and wait until their kinds are served."""
    document = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(crds)})
    apply = ["apply", "--server-side", "--force-conflicts", "--field-manager=tests", "-f", "-"]
    subprocess.run([*kubectl, *apply], input=document, text=True, check=True, timeout=DEADLINE_S)
    names = [f"crd/{child(crd, 'metadata')['name']}" for crd in crds]
    wait = ["wait", ESTABLISHED, f"--timeout={DEADLINE_S}s", *names]
    subprocess.run([*kubectl, *wait], check=True, timeout=2 * DEADLINE_S)


def wait_served(api: client.ApiClient, group: str, plural: str) -> None:
    """Wait until a kind can be listed: that follows on Established after a moment."""
    give_up = time.monotonic() + DEADLINE_S
    objects = client.CustomObjectsApi(api)
    while True:
        try:
            objects.list_cluster_custom_object(group, VERSION, plural)
            return
        except ApiException as error:
            if error.status not in (404, 429) or time.monotonic() > give_up:
                raise
            PAUSE.wait(POLL_S)


@pytest.fixture(scope="module")
def installed(api: client.ApiClient, kubectl: list[str]) -> None:
    """The chart's CRDs are served."""
    install(kubectl, *CRDS.values())
    for crd in CRDS.values():
        wait_served(api, GROUP, plural_of(crd))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.manifest['kind']}: {case.name}")
def test_case(api: client.ApiClient, namespace: str, case: Case) -> None:
    crd = CRDS[str(case.manifest["kind"])]
    answer = Server(api, namespace, crd, GROUP).ask(case)
    assert answer.accepted == case.accept, answer.text
    assert case.message in answer.text
    assert case.result is None or answer.spec == case.result


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_sample_is_taken(api: client.ApiClient, namespace: str, path: Path) -> None:
    answer = Server(api, namespace, CRDS["MemKVPool"], GROUP).ask(
        Case(path.name, True, read_yaml(path))
    )
    assert answer.accepted, answer.text


RULES = [(kind, rule) for kind, crd in CRDS.items() for rule in rules_of(crd)]


def generation(kind: str, rule: Rule) -> int:
    """Return how many rules before this one say the same."""
    earlier = rules_of(CRDS[kind])[: rules_of(CRDS[kind]).index(rule)]
    return sum(other.message == rule.message for other in earlier)


@pytest.fixture(scope="module")
def crippled(
    api: client.ApiClient, kubectl: list[str]
) -> Iterator[Callable[[str, Rule], tuple[Object, str]]]:
    """Makes, once, the CRD of a kind that lacks a rule. Returns it and its API group."""
    made: dict[str, Object] = {}

    def make(kind: str, rule: Rule) -> tuple[Object, str]:
        number = generation(kind, rule)
        group = f"without-{number}.{kind.lower()}.test"
        if group not in made:
            gone = [other for other in rules_of(CRDS[kind]) if generation(kind, other) == number]
            crd = without(CRDS[kind], gone, group)
            install(kubectl, crd)
            wait_served(api, group, plural_of(crd))
            made[group] = crd
        return made[group], group

    yield make
    extensions = client.ApiextensionsV1Api(api)
    for crd in made.values():
        extensions.delete_custom_resource_definition(str(child(crd, "metadata")["name"]))


@pytest.mark.parametrize(("kind", "rule"), RULES, ids=str)
def test_rule_is_what_refuses(
    api: client.ApiClient,
    namespace: str,
    crippled: Callable[[str, Rule], tuple[Object, str]],
    kind: str,
    rule: Rule,
) -> None:
    server = Server(api, namespace, *crippled(kind, rule))
    cases = [
        case
        for case in CASES
        if not case.accept and case.manifest["kind"] == kind and case.message in rule.message
    ]
    missed = [case.name for case in cases if not as_expected(case, server.ask(case))]
    assert missed, f"{[case.name for case in cases]} are refused without this rule too"


@pytest.mark.usefixtures("installed")
def test_columns_and_conditions_of_a_pool(
    api: client.ApiClient, namespace: str, kubectl: list[str]
) -> None:
    """Two writers own a condition each, and `kubectl get` shows what is in the status."""
    objects = client.CustomObjectsApi(api)
    place = (GROUP, VERSION, namespace, "memkvpools")
    sample = read_yaml(ROOT / "deploy/samples/pool.yaml")
    objects.create_namespaced_custom_object(*place, sample)
    applied: list[Object] = []
    for writer, kind in (("one", "Ready"), ("two", "NodesReady")):
        condition = {
            "type": kind, "status": "False", "reason": "NodesNotReady", "message": "",
            "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z",
        }  # fmt: skip
        status = {"observedGeneration": 1, "nodeSummary": "0/3", "conditions": [condition]}
        manifest = {
            "apiVersion": sample["apiVersion"], "kind": sample["kind"],
            "metadata": {"name": "pool-a", "namespace": namespace}, "status": status,
        }  # fmt: skip
        done = subprocess.run(
            [*kubectl, "apply", "--server-side", "--subresource=status", "--force-conflicts",
             f"--field-manager={writer}", "-o", "json", "-f", "-"],
            input=json.dumps(manifest), text=True, capture_output=True, timeout=DEADLINE_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        applied = cast(list[Object], child(json.loads(done.stdout), "status")["conditions"])
    assert [entry["type"] for entry in applied] == ["Ready", "NodesReady"]
    shown = subprocess.run(
        [*kubectl, "get", "mkvp", "-n", namespace], capture_output=True, text=True, check=True,
        timeout=DEADLINE_S,
    ).stdout  # fmt: skip
    head, row = shown.splitlines()
    assert head.split()[:4] == ["NAME", "READY", "REASON", "NODES"]
    assert row.split()[:4] == ["pool-a", "False", "NodesNotReady", "0/3"]


@pytest.mark.usefixtures("installed")
def test_columns_of_a_node(api: client.ApiClient, namespace: str, kubectl: list[str]) -> None:
    body = {
        "apiVersion": f"{GROUP}/{VERSION}", "kind": "MemKVNode",
        "metadata": {"name": "pool-a-0a1b2c3d", "labels": {"memkv.io/pool": "pool-a"}},
        "spec": {"nodeName": "worker-7"},
    }  # fmt: skip
    objects = client.CustomObjectsApi(api)
    objects.create_namespaced_custom_object(GROUP, VERSION, namespace, "memkvnodes", body)
    shown = subprocess.run(
        [*kubectl, "get", "mkvn", "-n", namespace], capture_output=True, text=True, check=True,
        timeout=DEADLINE_S,
    ).stdout  # fmt: skip
    assert shown.splitlines()[1].split()[:4] == ["pool-a-0a1b2c3d", "pool-a", "worker-7", "Active"]
