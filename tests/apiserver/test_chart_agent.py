"""The agent as the chart renders it: the one privileged pod, and nothing more than it needs."""

from typing import cast

import pytest

from memkv.cli import main as cli
from memkv.cli import parsing, settings
from memkv_operator.api.names import AGENTS_IDENTITY
from memkv_operator.testing.crds import Object, child, objects
from memkv_operator.testing.helm import SCENARIOS, documents, template, values

AGENT = ("--set", "agent.enabled=true")


def agent(helm: str, *arguments: str) -> Object:
    (found,) = (
        manifest
        for manifest in documents(template(helm, *arguments))
        if manifest["kind"] == "DaemonSet"
        and child(manifest, "metadata", "labels")["app.kubernetes.io/component"] == "agent"
    )
    return child(found, "spec", "template", "spec")


def container_of(pod: Object) -> Object:
    (container,) = objects(pod, "containers")
    return container


def test_command_parses_with_every_value(helm: str) -> None:
    for arguments in (AGENT, values("everything")):
        container = container_of(agent(helm, *arguments))
        words = ["memkv", "agent", *cast(list[str], container["args"])]
        command = cli.load("agent")
        parser = parsing.build_parser(cli.HELP, "agent", command)
        parsed = parser.parse_args(words[1:])
        settings.resolve(command.fields, [settings.flag_source(vars(parsed))])
        assert ("--allow-loop" in words) == (arguments != AGENT)


def test_agent_has_no_right_in_the_cluster_and_no_port_of_the_node(helm: str) -> None:
    pod = agent(helm, *AGENT)
    assert pod["automountServiceAccountToken"] is False
    for name in ("hostNetwork", "hostPID", "hostIPC", "serviceAccountName"):
        assert name not in pod
    assert not any("hostPort" in port for port in objects(container_of(pod), "ports"))


def test_agent_gets_its_certificate_and_not_the_authoritys_key(helm: str) -> None:
    volumes = objects(agent(helm, *AGENT), "volumes")
    (secret,) = (child(volume, "secret") for volume in volumes if "secret" in volume)
    assert secret["secretName"] == AGENTS_IDENTITY
    assert [item["key"] for item in objects(secret, "items")] == ["tls.crt", "tls.key", "ca.crt"]


def test_folders_of_the_node_that_are_only_read(helm: str) -> None:
    mounts = objects(container_of(agent(helm, *AGENT)), "volumeMounts")
    read_only = {str(mount["name"]) for mount in mounts if mount.get("readOnly")}
    assert read_only == {"sys", "proc", "tls"}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_agent_is_the_only_privileged_pod(helm: str, scenario: str) -> None:
    for manifest in documents(template(helm, *values(scenario))):
        spec = child(manifest, "spec", "template", "spec") if manifest["kind"] in (
            "DaemonSet", "Deployment", "StatefulSet", "Job") else {}  # fmt: skip
        for container in objects(spec, "containers"):
            if child(container, "securityContext").get("privileged"):
                assert container["name"] == "agent"
