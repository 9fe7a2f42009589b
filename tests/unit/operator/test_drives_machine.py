"""Two pools and two nodes through anything that people, disks and agents do, in any order.

Pure: what is decided is written to a model of the API server, orders reach agents when they do.
After each step: nothing was erased that nobody approved, and no disk is in two assignments.
"""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from memkv_operator.api.cluster import KubeNode
from memkv_operator.api.node import read_memkv_node
from memkv_operator.api.pool import read_pool
from memkv_operator.nodes.agent_facts import agent_facts_of, spec_of
from memkv_operator.plan.disks import AgentOrders, AgentSeen
from memkv_operator.plan.drive_desk import DriveDesk, DriveSnapshot
from memkv_operator.testing.agents import FakeAgent, FakeDisk
from memkv_operator.testing.cluster import SPEC

NODES = ("n1", "n2")
POOLS = ("a", "b")
DISKS = tuple("uvwxyz")
KUBE_NODES = {
    name: KubeNode(name, {"memkv.io/node": "true"}, True, False, {}) for name in NODES
}  # fmt: skip


class Machine(RuleBasedStateMachine):
    """All of it."""

    def __init__(self) -> None:
        super().__init__()
        self.agents = {name: FakeAgent(name) for name in NODES}
        for number, name in enumerate(DISKS):
            content = ("", "ext4", "")[number % 3]
            self.agents[NODES[number % 2]].add(FakeDisk(name, content))
        self.approved: dict[tuple[str, str], set[str]] = {
            (p, n): set() for p in POOLS for n in NODES
        }
        self.status: dict[tuple[str, str], Any] = {key: {} for key in self.approved}
        self.storage: dict[str, dict[str, Any]] = {
            "a": {"deviceSelector": {}, "initPolicy": "IfBlank"},
            "b": {"deviceSelector": {}},
        }
        self.workers = {"a": 1, "b": 2}
        self.orders: dict[str, AgentOrders] = {}
        self.ever_approved: set[str] = set()

    # --- what happens ------------------------------------------------------------------------

    @rule(pool=st.sampled_from(POOLS))
    def decide(self, pool: str) -> None:
        desk = self.desk()
        for node, drives in desk.of_pool(self.pool(pool)).items():
            rows: Any = drives.status()
            self.check_newcomers(pool, node, rows)
            self.status[pool, node] = {**self.status[pool, node], "drives": rows}
        for node in NODES:
            orders = desk.orders_of(node)
            if orders is not None:
                self.orders[node] = orders

    @rule(node=st.sampled_from(NODES))
    def tell(self, node: str) -> None:
        """Orders may be old by now: what they may do is bound by fingerprints."""
        agent = self.agents[node]
        if agent.up and node in self.orders:
            agent.apply(spec_of(self.orders[node], agent.spec.generation + 1))

    @rule(pool=st.sampled_from(POOLS), node=st.sampled_from(NODES), disk=st.sampled_from(DISKS))
    def approve(self, pool: str, node: str, disk: str) -> None:
        found = self.agents[node].disks.get(disk)
        if found is not None:
            self.approved[pool, node].add(found.fingerprint)
            self.ever_approved.add(found.fingerprint)

    @rule(pool=st.sampled_from(POOLS), node=st.sampled_from(NODES))
    def revoke(self, pool: str, node: str) -> None:
        self.approved[pool, node].clear()

    @rule(
        node=st.sampled_from(NODES), disk=st.sampled_from(DISKS), what=st.sampled_from(["xfs", ""])
    )
    def somebody_writes(self, node: str, disk: str, what: str) -> None:
        if disk in self.agents[node].disks:
            self.agents[node].disks[disk].content = what

    @rule(node=st.sampled_from(NODES), disk=st.sampled_from(DISKS))
    def move(self, node: str, disk: str) -> None:
        other = self.agents[NODES[1 - NODES.index(node)]]
        if disk in self.agents[node].disks:
            other.add(self.agents[node].disks.pop(disk))

    @rule(
        node=st.sampled_from(NODES), disk=st.sampled_from(DISKS), error=st.sampled_from(["", "EIO"])
    )
    def fail(self, node: str, disk: str, error: str) -> None:
        if disk in self.agents[node].disks:
            self.agents[node].disks[disk].error = error

    @rule(node=st.sampled_from(NODES), up=st.booleans())
    def silence(self, node: str, up: bool) -> None:
        self.agents[node].up = up

    @rule(pool=st.sampled_from(POOLS), count=st.integers(1, 3))
    def change_workers(self, pool: str, count: int) -> None:
        self.workers[pool] = count

    @rule(pool=st.sampled_from(POOLS), disk=st.sampled_from(DISKS))
    def exclude(self, pool: str, disk: str) -> None:
        self.storage[pool]["excludedDevices"] = [{"path": f"/dev/disk/by-id/{disk}"}]

    @rule(pool=st.sampled_from(POOLS), node=st.sampled_from(NODES))
    def start_pod(self, pool: str, node: str) -> None:
        agent = self.agents[node]
        for assignment in agent.spec.assignments:
            if assignment.pool_uid == f"uid-{pool}":
                uuids = agent.hand_over(assignment.resource)
                workers = [{"position": n, "uuid": u.hex()} for n, u in enumerate(uuids)]
                self.status[pool, node]["workers"] = workers

    # --- what must hold ----------------------------------------------------------------------

    @invariant()
    def nothing_is_erased_that_nobody_approved(self) -> None:
        for agent in self.agents.values():
            for fingerprint, content in agent.erased:
                assert fingerprint in self.ever_approved, content
                assert not content.startswith("memkv ")

    @invariant()
    def no_disk_is_in_two_assignments(self) -> None:
        for orders in self.orders.values():
            drives = [drive.id for one in orders.assignments for drive in one.drives]
            assert len(drives) == len(set(drives))
            for one in orders.assignments:
                assert [d.position for d in one.drives] == list(range(len(one.drives)))

    @invariant()
    def every_row_has_a_state_and_a_reason(self) -> None:
        for status in self.status.values():
            rows = status.get("drives", [])
            assert len({row["id"] for row in rows}) == len(rows)
            seats = [row["position"] for row in rows if "position" in row]
            assert len(set(seats)) == len(seats)
            for row in rows:
                assert ("deniedReason" in row) == (row["state"] != "Ready"), row

    # --- helpers -----------------------------------------------------------------------------

    def check_newcomers(self, pool: str, node: str, rows: Any) -> None:
        """A drive is chosen that is approved as it is now, blank where the pool takes such, or
        that has the pool's own worker."""
        before = self.status[pool, node].get("drives", [])
        chosen = {row["id"] for row in before if "position" in row}
        for row in rows:
            if "position" not in row or row["id"] in chosen:
                continue
            disk = self.agents[node].disks[row["id"]]
            takes_blank = not disk.content and pool == "a"
            own = disk.content.startswith("memkv ") and any(
                worker["uuid"] == disk.worker_uuid.hex()
                for (owner, _), status in self.status.items()
                for worker in (*status.get("workers", []), *_workers_of(status))
                if owner == pool
            )
            assert takes_blank or own or disk.fingerprint in self.approved[pool, node], disk

    def pool(self, name: str) -> Any:
        spec = {
            **SPEC,
            "nodeGroups": [
                {
                    **SPEC["nodeGroups"][0],
                    "workers": self.workers[name],
                    "storage": self.storage[name],
                }
            ],
        }
        meta = {"name": name, "namespace": "ns", "uid": f"uid-{name}", "creationTimestamp": name}
        return read_pool({"metadata": meta, "spec": spec})

    def desk(self) -> DriveDesk:
        nodes = {
            f"ns/{pool}": [
                read_memkv_node(
                    {
                        "metadata": {"name": f"{pool}-{node}", "namespace": "ns"},
                        "spec": {
                            "nodeName": node, "approvedDrives": sorted(self.approved[pool, node]),
                        },
                        "status": self.status[pool, node],
                    }
                )
                for node in NODES
            ]
            for pool in POOLS
        }  # fmt: skip
        seen = {
            name: AgentSeen(
                name, agent_facts_of(agent.facts(), name), "" if agent.up else "nobody answers"
            )
            for name, agent in self.agents.items()
        }
        return DriveDesk(
            DriveSnapshot([self.pool(name) for name in POOLS], KUBE_NODES, nodes, seen)
        )

    def teardown(self) -> None:
        """When everybody answers and people approve what is asked, each pool has its drives."""
        for agent in self.agents.values():
            agent.up = True
        for _ in range(6):
            for pool in POOLS:
                self.decide(pool)
            for (pool, node), status in self.status.items():
                waiting = [r for r in status["drives"] if r["state"] == "PendingApproval"]
                self.approved[pool, node] |= {row["fingerprint"] for row in waiting}
                self.ever_approved |= {row["fingerprint"] for row in waiting}
            for node in NODES:
                self.tell(node)
        for status in self.status.values():
            assert not any(row["state"] == "PendingApproval" for row in status["drives"])
        self.nothing_is_erased_that_nobody_approved()
        self.no_disk_is_in_two_assignments()


def _workers_of(status: Any) -> list[dict[str, str]]:
    rows = status.get("drives", [])
    return [{"uuid": row["workerUUID"]} for row in rows if "workerUUID" in row]


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
