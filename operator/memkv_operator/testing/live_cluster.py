"""A running cluster, spoken to through kubectl and Helm as its users do, for tests."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from memkv_operator.testing.crds import Object, child, objects

ROOT = Path(__file__).resolve().parents[3]
COMMAND_S = 300
LOG_LINES = 25


class CommandFailed(AssertionError):
    """A command ended with an error; the message has what it printed."""


@dataclass(frozen=True, slots=True)
class LiveCluster:
    """Commands against the cluster of a kubeconfig file."""

    kubeconfig: Path
    image: str
    """An image of MemKV that the cluster's nodes have or can pull."""

    def run(self, *command: str, text: str = "") -> str:
        """Return what a command prints. CommandFailed for any other exit status than 0."""
        done = self.try_to(*command, text=text)
        if done.returncode != 0:
            raise CommandFailed(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def try_to(self, *command: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run kubectl or helm (the first word), whatever comes of it."""
        words = [command[0], f"--kubeconfig={self.kubeconfig}", *command[1:]]
        return subprocess.run(
            words, input=text, capture_output=True, text=True, timeout=COMMAND_S, check=False
        )

    def kubectl(self, *arguments: str, text: str = "") -> str:
        """Run kubectl."""
        return self.run("kubectl", *arguments, text=text)

    def apply(self, namespace: str, *manifests: Object) -> None:
        """Create or change objects. CommandFailed when the API server refuses one."""
        document = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        self.kubectl("apply", "-n", namespace, "-f", "-", text=json.dumps(document))

    def get(self, namespace: str, kind: str, name: str) -> Object:
        """Return one object. CommandFailed where there is none."""
        text = self.kubectl("get", "-n", namespace, kind, name, "-o", "json")
        return cast(Object, json.loads(text))

    def list(self, namespace: str, kind: str, *arguments: str) -> Sequence[Object]:
        """Return the objects of a kind."""
        text = self.kubectl("get", "-n", namespace, kind, "-o", "json", *arguments)
        return objects(cast(Object, json.loads(text)), "items")

    def wait(self, namespace: str, what: str, condition: str, seconds: int) -> None:
        """Wait for `kubectl wait --for`; CommandFailed with the state of the namespace."""
        arguments = ["wait", "-n", namespace, what, f"--for={condition}", f"--timeout={seconds}s"]
        done = self.try_to("kubectl", *arguments)
        if done.returncode != 0:
            raise CommandFailed(f"{what} {condition}: {done.stderr}\n{self.trouble(namespace)}")

    def nodes(self) -> Sequence[str]:
        """Return the names of the cluster's nodes, in order."""
        return sorted(str(child(node, "metadata")["name"]) for node in self.list("", "nodes"))

    def trouble(self, namespace: str) -> str:
        """Return what a person would look at first: pools, pods, events and logs."""
        parts = [
            self.try_to("kubectl", "get", "-n", namespace, *words).stdout
            for words in (
                ("memkvpools", "-o", "yaml"),
                ("pods,daemonsets,deployments,memkvnodes", "-o", "wide"),
                ("events", "--sort-by=.lastTimestamp"),
            )
        ]
        pods = self.try_to("kubectl", "get", "-n", namespace, "pods", "-o", "name").stdout
        for pod in pods.split():
            words = ("logs", "-n", namespace, pod, "--all-containers", f"--tail={LOG_LINES}")
            parts.append(f"--- {pod}\n{self.try_to('kubectl', *words).stdout}")
        return "\n".join(parts)
