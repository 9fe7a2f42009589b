"""The chart as Helm renders it, and what a real API server says to every object of it.

Helm: `helm` on PATH, or what deploy/dev/cluster/build.sh has built; without one these tests skip.
Each file of charts/memkv/ci is a scenario.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import yaml

from memkv.cli import main as cli
from memkv.cli import parsing, settings
from memkv_operator.api.names import AGENTS_AUTHORITY, AGENTS_IDENTITY
from memkv_operator.main import build_parser
from memkv_operator.testing.crds import Object, child, objects
from memkv_operator.testing.helm import (
    CHART,
    NAMESPACE,
    SCENARIOS,
    documents,
    run,
    template,
    values,
)

GOLDEN = Path(__file__).resolve().parents[1] / "golden/chart-rbac.yaml"
RELEASE_BYTES_MAX = 300_000  # Helm keeps a release in one Secret, at most 1 MiB with its packing


def refusal(helm: str, *arguments: str) -> str:
    """Return why Helm refuses these values."""
    done = run([helm, "template", "memkv", str(CHART), "-n", NAMESPACE, *arguments])
    assert done.returncode != 0, done.stdout[:2000]
    return done.stderr


def pod_specs(manifests: list[Object]) -> Iterator[Object]:
    for manifest in manifests:
        spec = child(manifest, "spec")
        if manifest["kind"] == "Pod":
            yield spec
        elif "template" in spec:
            yield child(spec, "template", "spec")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_lint_finds_nothing(helm: str, scenario: str) -> None:
    """`helm lint` knows no --api-versions: what needs other APIs is seen by the other tests."""
    if scenario == "monitoring":
        assert "this cluster lacks" in refusal(helm, *values(scenario))
        return
    done = run([helm, "lint", "--strict", str(CHART), *values(scenario)])
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_objects_carry_labels_and_release_is_small(helm: str, scenario: str) -> None:
    text = template(helm, *values(scenario))
    assert len(text) < RELEASE_BYTES_MAX
    manifests = documents(text)
    assert manifests
    for manifest in manifests:
        meta = child(manifest, "metadata")
        if "extra" in str(meta["name"]) or str(meta["name"]) == "memkv-text":
            continue  # the user's own
        labels = child(meta, "labels")
        assert labels["app.kubernetes.io/instance"] == "memkv", meta["name"]
        assert labels["app.kubernetes.io/part-of"] == "memkv", meta["name"]
    identities = [(m["kind"], child(m, "metadata").get("namespace"), child(m, "metadata")["name"])
                  for m in manifests]  # fmt: skip
    assert len(set(identities)) == len(identities)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_one_image_is_all_that_is_pulled(helm: str, scenario: str) -> None:
    """Whoever mirrors what `image:` lists has everything, hooks and tests included."""
    text = template(helm, *values(scenario))
    listed = set(re.findall(r"^\s*(?:- )?image: (\S+)$", text, re.MULTILINE))
    used = {
        str(container["image"])
        for spec in pod_specs(documents(text))
        for container in [*objects(spec, "containers"), *objects(spec, "initContainers")]
    }
    handed_on = {
        str(entry["value"])
        for spec in pod_specs(documents(text))
        for container in objects(spec, "containers")
        for entry in objects(container, "env")
        if entry["name"] == "MEMKV_IMAGE"
    }
    assert len(listed) == 1
    assert used == listed
    assert handed_on <= listed
    if scenario == "default":
        chart = documents((CHART / "Chart.yaml").read_text())[0]
        (image,) = listed
        assert f"image: {image}\n" in str(child(chart, "annotations")["artifacthub.io/images"])
        assert image.endswith(f":{chart['appVersion']}")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--set", "replicas=3"], "replicas"),
        (["--set", "image.name=x"], "name"),
        (["--set", "metrics.serviceMonitor.on=true"], "on"),
        (["--set", "dataPlane.static.port=1"], "port"),
        (["--set", "replicaCount=two"], "replicaCount"),
        (["--set", "dataPlane.mode=Auto"], "mode"),
        (["--set", "image.digest=latest"], "digest"),
        (["--set", "crds.keep=yes"], "keep"),
        (["--set", "watchNamespaces={a,a}"], "watchNamespaces"),
        (["--set", "watchNamespaces={a,}"], "leave the list empty"),
        (["--set", "serviceAccount.create=false"], "needs serviceAccount.name"),
        (["--set", "metrics.podMonitor.enabled=true"], "monitoring.coreos.com/v1"),
        (["--set", "metrics.serviceMonitor.enabled=true"], "monitoring.coreos.com/v1"),
        (["--set", "metrics.prometheusRule.enabled=true"], "monitoring.coreos.com/v1"),
        (["--set", "nodeFeatureRule.enabled=true"], "nfd.k8s-sigs.io/v1alpha1"),
        (
            ["--set", "metrics.serviceMonitor.enabled=true", "--set",
             "metrics.service.enabled=false", "--api-versions", "monitoring.coreos.com/v1"],
            "needs metrics.service.enabled=true",
        ),
        (["--set", "agent.on=true"], "on"),
        (["--set", "agent.minSize=huge"], "minSize"),
        (["--set", "agent.kubeletDir=kubelet"], "kubeletDir"),
        ([*values("static"), "--set", "agent.enabled=true"], "nobody commands an agent"),
        (["--set", "agent.enabled=true", "--set", "agent.ports.metrics=9472"], "the same port"),
        (["--set", "agent.enabled=true", "--set", "agent.nodeSelector=null"], "on every node"),
        (["--set", "dataPlane.mode=Static"], "dataPlane.static.insecure=true"),
        ([*values("static-tls"), "--set", "dataPlane.static.tls.ticketSecret="], "three Secrets"),
        ([*values("static-tls"), "--set", "dataPlane.static.insecure=true"], "takes no Secrets"),
        ([*values("static"), "--set", "dataPlane.static.nodes=null"], "needs dataPlane"),
        ([*values("static"), "--set", "dataPlane.static.nodes={10.0.0.7}"], "nodes"),
        (
            [*values("static"), "--set", "serviceDaemonSet.nodeSelector=null"],
            "needs serviceDaemonSet.nodeSelector",
        ),
        (
            [*values("static"), "--set", "dataPlane.static.ports.data=9469"],
            "is the data port of a worker",
        ),
        (["--set", "podDisruptionBudget.minAvailable=2"], "nodes could never be drained"),
        ([*values("everything"), "--set", "uninstall.force=true"], "hang in deletion for ever"),
        ([*values("everything"), "--set", "uninstall.check=false"], "hang in deletion for ever"),
        (["--set", "podLabels.app\\.kubernetes\\.io/name=x"], "podLabels says app.kubernetes.io"),
        (
            ["--set", "podAnnotations.kubectl\\.kubernetes\\.io/default-container=x"],
            "podAnnotations says",
        ),
        (["--set", "nameOverride=A_b"], "nameOverride"),
        (["--set", "fullnameOverride=1st"], "fullnameOverride"),
        (["--set", "namespaceOverride=Team"], "namespaceOverride"),
        (["--set", "watchNamespaces={Team_A}"], "watchNamespaces"),
        (["--set", "image.tag=a b"], "tag"),
        (["--set", "image.repository=memkv:1"], "repository"),
        (["--set", "global.imageRegistry=https://x"], "imageRegistry"),
        (["--set", "extraArgs={--lease-name=x}"], "extraArgs repeats --lease-name"),
        (["--set", "extraArgs={--namespace,team-a}"], "extraArgs repeats --namespace"),
        (
            ["--set-json", "extraArgs=[\"{{ print `--http-port=1` }}\"]"],
            "extraArgs repeats --http-port",
        ),
        (["--set", "extraEnv[0].name=POD_NAMESPACE"], "extraEnv says POD_NAMESPACE"),
        (
            ["--set", "extraEnv[0].name=A", "--set", "extraEnv[1].name=A"],
            "extraEnv says A, which the chart sets itself or which is there twice",
        ),
        (["--set", "extraEnv[0].value=x"], "name"),
        (["--set", "global.imageRegistri=x"], "global.imageRegistri is read by nothing"),
        (
            [*values("static"), "--set", "dataPlane.static.ports.data=65535"],
            "leaves no port for each of 2 workers",
        ),
        (
            [*values("static"), "--set", "dataPlane.static.ports.metrics=9470"],
            "ports.admin and dataPlane.static.ports.metrics are the same port",
        ),
        (
            [*values("static"), "--set", "dataPlane.static.ports.metadata=9471"],
            "ports.metadata and dataPlane.static.ports.metrics are the same port",
        ),
        (
            [*values("static"), "--set", "dataPlane.static.extraEnv[0].name=POD_IP"],
            "extraEnv says POD_IP",
        ),
        (
            [*values("static"), "--set", "serviceDaemonSet.labels.memkv\\.io/pool=x"],
            "serviceDaemonSet.labels says memkv.io/pool",
        ),
        (
            [*values("static"), "--set", "serviceDaemonSet.updateStrategy.type=OnDelete"],
            "rollingUpdate needs type=RollingUpdate",
        ),
        (
            [*values("static"), "--set", "dataPlane.static.metadata.service.nodePort=30743"],
            "needs service.type=NodePort",
        ),
        (
            [*values("static"), "--set", "dataPlane.static.metadata.externalEndpoint=memkv"],
            "externalEndpoint",
        ),
        ([*values("static"), "--set", "dataPlane.static.tls.saltKey=salt"], "saltKey needs TLS"),
        (
            [*values("static"), "--set", "serviceDaemonSet.updateStrategy.type=Recreate"],
            "updateStrategy",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[-1:]),
)  # fmt: skip
def test_wrong_values_are_refused_with_the_reason(
    helm: str, arguments: list[str], reason: str
) -> None:
    assert reason in refusal(helm, *arguments)


def test_schema_says_something_of_every_value() -> None:
    """And nothing of values that do not exist."""
    schema = cast(Object, json.loads((CHART / "values.schema.json").read_text()))
    defaults = documents((CHART / "values.yaml").read_text())[0]
    assert not list(differences(schema, defaults))


def differences(schema: Object, defaults: Object, path: str = "") -> Iterator[str]:
    properties = child(schema, "properties")
    yield from (f"{path}.{name}" for name in properties.keys() ^ defaults.keys())
    for name, value in defaults.items():
        inner = child(properties, name)
        whole = name in ("resources", "updateStrategy")  # as Kubernetes has it
        if isinstance(value, dict) and value and "properties" in inner and not whole:
            if path or name != "global":
                assert inner.get("additionalProperties") is False, f"{path}.{name} takes anything"
            yield from differences(inner, cast(Object, value), f"{path}.{name}")


def test_flags_that_the_chart_sets_are_known(helm: str) -> None:
    """What is refused of extraArgs and extraEnv is what the operator's pod has already."""
    everything = [*values("everything"), "--set", "watchNamespaces={a}", "--set", "extraArgs=null"]
    manifests = documents(template(helm, *everything, "--set", "extraEnv=null"))
    for word in arguments_of(manifests, "operator")[2:]:
        name = word.partition("=")[0]
        assert f"repeats {name}" in refusal(helm, "--set", f"extraArgs={{{name}}}")
    (container,) = [
        container
        for spec in pod_specs(manifests)
        for container in objects(spec, "containers")
        if container["name"] == "operator"
    ]
    for entry in objects(container, "env"):
        given = f"extraEnv[0].name={entry['name']}"
        assert f"extraEnv says {entry['name']}" in refusal(helm, "--set", given)


def test_global_values_of_a_parent_chart_are_not_looked_at(helm: str, tmp_path: Path) -> None:
    """They are for the other charts beside this one."""
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts/memkv").symlink_to(CHART)
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: parent\nversion: 1.0.0\n")
    done = run([helm, "template", "all", str(tmp_path), "--set", "global.postgresql.password=x"])
    assert done.returncode == 0, done.stderr


def test_notes_tell_the_next_steps(helm: str) -> None:
    for scenario, step in (("default", "get memkvpools -w"), ("static", "memkv-connection")):
        done = run(
            [helm, "install", "memkv", str(CHART), "-n", NAMESPACE, "--dry-run=client",
             *values(scenario)]
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert step in done.stdout.partition("NOTES:")[2]


def test_crds_stay_or_go(helm: str) -> None:
    def crds(*arguments: str) -> list[Object]:
        found = documents(template(helm, *arguments))
        return [crd for crd in found if crd["kind"] == "CustomResourceDefinition"]

    kept = [child(crd, "metadata", "annotations") for crd in crds()]
    assert kept == [{"helm.sh/resource-policy": "keep"}] * 3
    assert [child(crd, "metadata").get("annotations") for crd in crds(*values("everything"))] == [
        None
    ] * 3
    assert not crds("--set", "crds.install=false")
    assert not crds(*values("static"))


def test_a_binding_that_is_not_made_is_not_named(helm: str) -> None:
    assert "MEMKV_METADATA_BINDING" in template(helm)
    assert "MEMKV_METADATA_BINDING" not in template(helm, "--set", "rbac.create=false")


def test_alerts_of_an_operator_are_for_charts_that_have_one(helm: str) -> None:
    """One of them fires where no operator is scraped."""

    def groups(*arguments: str) -> list[str]:
        rule = ("--set", "metrics.prometheusRule.enabled=true")
        (found,) = (
            child(one, "spec")
            for one in documents(template(helm, *arguments, *rule))
            if one["kind"] == "PrometheusRule"
        )
        assert all(objects(group, "rules") for group in objects(found, "groups"))
        return [str(group["name"]) for group in objects(found, "groups")]

    assert groups() == ["memkv", "memkv-operator"]
    assert groups(*values("static")) == ["memkv"]


def test_rights_are_those_that_were_reviewed(helm: str) -> None:
    """A change of rights is a change of tests/golden/chart-rbac.yaml."""
    rights = {
        f"{manifest['kind']} {child(manifest, 'metadata')['name']}": objects(manifest, "rules")
        for manifest in documents(template(helm))
        if manifest["kind"] in ("ClusterRole", "Role")
    }
    for name, rules in rights.items():
        for rule in rules:
            for key in ("apiGroups", "resources", "verbs", "resourceNames"):
                entries = cast(list[str], rule.get(key, []))
                assert entries == sorted(entries), f"{name}: {key}"
                assert "*" not in entries, name
            if "secrets" in cast(list[str], rule["resources"]):
                assert not {"list", "watch"} & set(cast(list[str], rule["verbs"])), name
        groups = [(rule["apiGroups"], rule["resources"]) for rule in rules]
        assert groups[-14:] == sorted(groups[-14:], key=str), name
    assert rights == yaml.safe_load(GOLDEN.read_text())


@pytest.mark.parametrize(
    ("flag", "group", "resource"),
    [
        ("certManager.enabled", "cert-manager.io", "certificates"),
        ("metrics.poolPodMonitors.enabled", "monitoring.coreos.com", "podmonitors"),
    ],
)
def test_rights_to_the_kinds_of_others_are_asked_for(
    helm: str, flag: str, group: str, resource: str
) -> None:
    def rules(*arguments: str) -> list[Object]:
        return [
            rule
            for manifest in documents(template(helm, *arguments))
            if manifest["kind"] in ("ClusterRole", "Role")
            for rule in objects(manifest, "rules")
        ]

    before, after = rules(), rules("--set", f"{flag}=true")
    (added,) = [rule for rule in after if rule not in before]
    verbs = ["create", "delete", "get", "patch"]
    assert added == {"apiGroups": [group], "resources": [resource], "verbs": verbs}
    assert len(after) == len(before) + 1


def arguments_of(manifests: list[Object], name: str) -> list[str]:
    (container,) = [
        container
        for spec in pod_specs(manifests)
        for container in objects(spec, "containers")
        if container["name"] == name
    ]
    return cast(list[str], [*objects(container, "command"), *objects(container, "args")])


@pytest.mark.parametrize("scenario", ["static", "static-tls"])
@pytest.mark.parametrize("name", ["node", "metadata", "test"])
def test_commands_of_the_static_mode_parse(helm: str, name: str, scenario: str) -> None:
    words = arguments_of(documents(template(helm, *values(scenario))), name)
    assert name == "test" or ("--insecure" in words) == (scenario == "static")
    words = [word.replace("$(NODE_NAME)", "n1").replace("$(POD_IP)", "10.0.0.7") for word in words]
    assert words[0] == "memkv"
    command = cli.load(parsing.name_of(words[1:], cli.HELP))
    arguments = parsing.build_parser(cli.HELP, words[1], command).parse_args(words[1:])
    settings.resolve(command.fields, [settings.flag_source(vars(arguments))])


def test_clients_of_another_cluster_are_told_what_they_can_reach(helm: str) -> None:
    """Storage pods go by the Service all the same."""
    manifests = documents(template(helm, *values("static-tls")))
    (config,) = [m for m in manifests if m["kind"] == "ConfigMap"]
    connection = json.loads(str(child(config, "data")["connection.json"]))
    assert connection["endpoint"] == "memkv.example:30743"
    inside = f"memkv-metadata.{NAMESPACE}.svc:7443"
    assert f"--metadata={inside}" in arguments_of(manifests, "node")
    (service,) = [m for m in manifests if m["kind"] == "Service"]
    assert child(service, "metadata")["annotations"] == {"example.org/a": "b"}
    assert objects(child(service, "spec"), "ports")[0]["nodePort"] == 30743
    alone = documents(template(helm, *values("static")))
    (config,) = [m for m in alone if m["kind"] == "ConfigMap"]
    assert inside in str(child(config, "data")["connection.json"])


def test_the_operators_policy_lets_it_reach_storage_pods_and_helm_test_reach_it(helm: str) -> None:
    def policy(*arguments: str) -> Object:
        (found,) = [
            m
            for m in documents(template(helm, *arguments))
            if m["kind"] == "NetworkPolicy"
            and str(child(m, "metadata")["name"]).endswith("operator")
        ]
        return child(found, "spec")

    given = policy(*values("everything"))
    on_nodes = [rule for rule in objects(given, "egress") if "ipBlock" in str(rule.get("to"))]
    assert on_nodes == [
        {
            "to": [{"ipBlock": {"cidr": "10.0.0.0/16"}}, {"ipBlock": {"cidr": "fd00::/48"}}],
            "ports": [{"port": 9470, "protocol": "TCP"}, {"port": 9570, "protocol": "TCP"}],
        }
    ]
    assert "ipBlock" not in str(policy(*values("namespaced")))
    manifests = documents(template(helm, *values("namespaced")))
    (tested,) = [m for m in manifests if m["kind"] == "Pod"]
    labels = child(tested, "metadata", "labels")
    (rule,) = objects(policy(*values("namespaced")), "ingress")
    selectors = [child(peer, "podSelector", "matchLabels") for peer in objects(rule, "from")]
    assert any(wanted and wanted.items() <= labels.items() for wanted in selectors)


def test_the_metadata_pod_of_the_static_mode_goes_where_it_is_told(helm: str) -> None:
    manifests = documents(template(helm, *values("static-tls")))
    (deployment,) = [m for m in manifests if m["kind"] == "Deployment"]
    spec = child(deployment, "spec", "template", "spec")
    assert spec["nodeSelector"] == {"pool": "system"}
    assert spec["tolerations"] == [{"key": "system", "operator": "Exists"}]
    assert spec["priorityClassName"] == "system-cluster-critical"
    (ticket,) = [volume for volume in objects(spec, "volumes") if volume["name"] == "ticket"]
    files = {item["path"]: item["key"] for item in objects(child(ticket, "secret"), "items")}
    assert files == {"private.pem": "private.pem", "salt": "salt"}
    assert "--salt-secret=/etc/memkv-ticket/salt" in arguments_of(manifests, "metadata")


def test_command_of_the_operator_parses(helm: str) -> None:
    manifests = documents(template(helm, *values("namespaced")))
    words = arguments_of(manifests, "operator")
    assert words[0] == "memkv-operator"
    arguments = build_parser().parse_args(words[1:])
    assert arguments.namespace == ["team-a", "team-b"]
    (election,) = [
        manifest
        for manifest in manifests
        if child(manifest, "metadata")["name"] == "memkv-operator-election"
        and manifest["kind"] == "Role"
    ]
    named = {
        (str(rule["resources"]), str(rule["verbs"])): rule.get("resourceNames")
        for rule in objects(election, "rules")
    }
    assert named["['leases']", "['get', 'update']"] == [arguments.lease_name]
    assert named["['secrets']", "['get', 'patch']"] == [AGENTS_AUTHORITY, AGENTS_IDENTITY]
    hook = build_parser().parse_args(arguments_of(manifests, "uninstall")[1:])
    assert hook.namespace == ["team-a", "team-b"]
    assert hook.lease_name == arguments.lease_name
    deployments = [child(m, "metadata")["name"] for m in manifests if m["kind"] == "Deployment"]
    assert deployments == [hook.deployment]
    assert named["['deployments']", "['patch']"] == deployments
    assert not hook.force
    forced = documents(template(helm, "--set", "uninstall.force=true"))
    assert build_parser().parse_args(arguments_of(forced, "uninstall")[1:]).force
