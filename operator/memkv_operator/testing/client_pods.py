"""Pods that use a pool as inference pods do, for tests on a running cluster."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from memkv_operator.testing.crds import Object, child
from memkv_operator.testing.live_cluster import CommandFailed, LiveCluster

USER = 65532
TOKEN_FOLDER = "/var/run/secrets/memkv"  # as connection.json names it
TOKEN_AUDIENCE = "memkv-metadata"
TOKEN_S = 3600
DEADLINE = "60s"  # of pods that share two cores with a cluster; a lost node's are misses at once
MAKE_BLOCK = (
    "import random, sys; block = random.Random(int(sys.argv[1])).randbytes(2 << 20);"
    " open('/tmp/block', 'wb').write(block)"
)


def put(*numbers: int) -> list[str]:
    """Store 2 MiB blocks of different bytes, durably, and print their sums."""
    return [
        f'python3 -c "{MAKE_BLOCK}" {number};'
        f" memkv put block-{number} /tmp/block --durable --deadline {DEADLINE};"
        " sha256sum </tmp/block"
        for number in numbers
    ]


def get(*numbers: int) -> list[str]:
    """Fetch blocks and print their sums."""
    return [
        f"memkv get block-{number} -o /tmp/found --deadline {DEADLINE}; sha256sum </tmp/found"
        for number in numbers
    ]


@dataclass(frozen=True, slots=True)
class ClientPods:
    """Makes pods that have nothing but a pool's ConfigMap and their ServiceAccount."""

    cluster: LiveCluster
    namespace: str
    pool: str
    seconds: int
    """After which a pod that did not end is a failure."""
    account: str = ""
    """ServiceAccount whose token the pod is given; empty: none, as the pool asks nobody."""

    def run(self, name: str, *lines: str) -> Sequence[str]:
        """Run a script in a pod that must succeed; return the sums that it prints."""
        succeeded, logs = self.outcome(name, *lines)
        if not succeeded:
            raise CommandFailed(f"{name} failed:\n{logs}\n{self.cluster.trouble(self.namespace)}")
        return [line for line in logs.splitlines() if line.endswith("  -")]

    def outcome(self, name: str, *lines: str) -> tuple[bool, str]:
        """Run a script in a pod; return whether it succeeded, and what it printed."""
        cluster, namespace = self.cluster, self.namespace
        cluster.apply(namespace, self.job(name, "\n".join(lines)))
        deadline = time.monotonic() + self.seconds
        while time.monotonic() < deadline:
            # Returns at the first condition: a job has one end or the other.
            cluster.try_to(
                "kubectl", "wait", "-n", namespace, f"job/{name}",
                "--for=jsonpath={.status.conditions}", f"--timeout={self.seconds}s",
            )  # fmt: skip
            status = child(cluster.get(namespace, "job", name), "status")
            if status.get("succeeded") or status.get("failed"):
                logs = cluster.try_to("kubectl", "logs", "-n", namespace, f"job/{name}").stdout
                return bool(status.get("succeeded")), logs
        raise CommandFailed(
            f"{name} did not end in {self.seconds} s:\n{cluster.trouble(namespace)}"
        )

    def job(self, name: str, script: str) -> Object:
        """Return the Job, whose pod is as restricted as Kubernetes knows."""
        mounts: list[Object] = [
            {"name": "connection", "mountPath": "/etc/memkv"}, {"name": "tmp", "mountPath": "/tmp"}
        ]  # fmt: skip
        volumes: list[Object] = [
            {"name": "connection", "configMap": {"name": f"{self.pool}-connection"}},
            {"name": "tmp", "emptyDir": {}},
        ]
        if self.account:
            mounts.append({"name": "token", "mountPath": TOKEN_FOLDER, "readOnly": True})
            volumes.append({"name": "token", "projected": {"sources": [_token()]}})
        container: Object = {
            "name": "client", "image": self.cluster.image, "command": ["sh", "-euc", script],
            "securityContext": {
                "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            },
            "volumeMounts": mounts,
        }  # fmt: skip
        pod: Object = {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "serviceAccountName": self.account or "default",
            "securityContext": {
                "runAsNonRoot": True, "runAsUser": USER, "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": volumes,
        }  # fmt: skip
        spec: Object = {"backoffLimit": 0, "template": {"spec": pod}}
        return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}


def _token() -> Object:
    token: Object = {"path": "token", "audience": TOKEN_AUDIENCE, "expirationSeconds": TOKEN_S}
    return {"serviceAccountToken": token}
