"""Agents without machines: disks are values, and erasing one is noted."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from memkv.errors import PeerGone, ProtocolError
from memkv_operator.nodes.admin import AdminTls
from memkv_proto import agent_admin_pb2 as pb

GIB = 1 << 30
SIZE = 1024 * GIB


@dataclass(slots=True)
class FakeDisk:
    """One disk; `content`: "" blank, "memkv HEX" a worker's blocks, anything else foreign."""

    id: str
    content: str = ""
    size_bytes: int = SIZE
    transport: str = "nvme"
    wwn: str = ""
    serial: str = ""
    unusable_reason: str = ""
    error: str = ""

    @property
    def path(self) -> str:
        """Where udev would link to it."""
        return f"/dev/disk/by-id/{self.id}"

    @property
    def worker_uuid(self) -> bytes:
        """The worker whose blocks it holds; empty: none."""
        return bytes.fromhex(self.content[6:]) if self.content.startswith("memkv ") else b""

    @property
    def fingerprint(self) -> str:
        """Of disk and content, as agents make it."""
        digest = sha256(f"{self.id} {self.content}".encode()).hexdigest()[:16]
        return f"{self.id}:{self.size_bytes}:sha256-{digest}"

    def facts(self, assigned: bool) -> pb.AgentDisk:
        """Return what the agent says of it."""
        foreign = bool(self.content) and not self.worker_uuid
        kind = (
            pb.DRIVE_CONTENT_FOREIGN if foreign
            else pb.DRIVE_CONTENT_MEMKV if self.content else pb.DRIVE_CONTENT_BLANK
        )  # fmt: skip
        return pb.AgentDisk(
            id=self.id,
            path=self.path,
            size_bytes=self.size_bytes,
            model="ACME X1",
            serial=self.serial,
            wwn=self.wwn,
            transport=self.transport,
            numa_node=-1,
            fingerprint=self.fingerprint,
            content=kind,
            content_description=self.content if foreign else "",
            worker_uuid=self.worker_uuid,
            unusable_reason=self.unusable_reason,
            assigned=assigned,
            error=self.error,
        )


@dataclass(slots=True)
class FakeAgent:
    """The agent of one node."""

    node: str
    disks: dict[str, FakeDisk] = field(default_factory=dict)
    spec: pb.AgentSpec = field(default_factory=pb.AgentSpec)
    up: bool = True
    erased: list[tuple[str, str]] = field(default_factory=list)
    """(fingerprint, content) of everything that was erased."""
    wiped: set[str] = field(default_factory=set)
    """Fingerprints of disks that were wiped to their end."""
    wipe_looks: int = 3
    """How many looks a wipe takes; both ends are blank after the first."""
    looks: dict[str, int] = field(default_factory=dict)
    """How many each wipe that is asked for has had."""
    applied: int = 0
    """How often it was told something."""

    def add(self, *disks: FakeDisk) -> None:
        """Plug disks in."""
        self.disks.update({disk.id: disk for disk in disks})

    def facts(self) -> pb.AgentFacts:
        """Look at the disks, and return what it says."""
        self._wipe()
        assigned = {drive.id for one in self.spec.assignments for drive in one.drives}
        return pb.AgentFacts(
            node_name=self.node,
            software_version="1.2.3",
            spec_generation=self.spec.generation,
            disks=[disk.facts(disk.id in assigned) for _, disk in sorted(self.disks.items())],
            assignments=[
                pb.AssignmentFacts(
                    pool_uid=one.pool_uid,
                    resource=one.resource,
                    healthy=bool(self._usable(one)),
                    problem="" if self._usable(one) else "a drive of it is not as decided",
                )
                for one in self.spec.assignments
            ],
            wipes=[
                pb.WipeFacts(
                    fingerprint=wipe,
                    done=self.looks.get(wipe, 0) >= self.wipe_looks,
                    wiped_bytes=SIZE // self.wipe_looks * self.looks.get(wipe, 0),
                )
                for wipe in self.spec.wipes
            ],
        )

    def apply(self, spec: pb.AgentSpec) -> int:
        """Take a spec over. ProtocolError as the agent would refuse it."""
        if spec.generation < self.spec.generation:
            raise ProtocolError("FAILED_PRECONDITION: an older generation")
        drives = [drive.id for one in spec.assignments for drive in one.drives]
        if len(drives) != len(set(drives)):
            raise ProtocolError("INVALID_ARGUMENT: one drive in two assignments")
        for one in spec.assignments:
            if [drive.position for drive in one.drives] != list(range(len(one.drives))):
                raise ProtocolError("INVALID_ARGUMENT: positions with gaps")
        self.applied += 1
        self.spec = pb.AgentSpec()
        self.spec.CopyFrom(spec)
        self._erase()
        return self.spec.generation

    def hand_over(self, resource: str) -> Sequence[bytes]:
        """Start a pod that asks for a resource: its workers format blank drives. Return them; none
        while the resource is not advertised."""
        if not self.up:
            return ()
        workers = []
        for one in self.spec.assignments:
            for disk in self._usable(one) if one.resource == resource else ():
                if not disk.content:
                    uuid = sha256(f"{one.pool_uid} {disk.id}".encode()).hexdigest()[:32]
                    disk.content = f"memkv {uuid}"
                workers.append(disk.worker_uuid)
        return workers

    def _usable(self, assignment: pb.Assignment) -> list[FakeDisk]:
        """Return the drives of an assignment, none when one of them cannot be handed out."""
        found = [self.disks.get(drive.id) for drive in assignment.drives]
        usable = [disk for disk in found if disk is not None and not _is_foreign(disk)]
        return usable if len(usable) == len(found) else []

    def _erase(self) -> None:
        for one in self.spec.assignments:
            for drive in one.drives:
                disk = self.disks.get(drive.id)
                if disk and drive.erase and _is_foreign(disk) and not disk.unusable_reason:
                    self._clear(disk, drive.fingerprint)

    def _wipe(self) -> None:
        """As the agent: what is not asked any more is forgotten, also half-way."""
        self.looks = {wipe: count for wipe, count in self.looks.items() if wipe in self.spec.wipes}
        for wipe in self.spec.wipes:
            for disk in self.disks.values():
                begun = wipe in self.looks and disk.id == wipe.rsplit(":", 2)[0]
                if disk.fingerprint != wipe and not begun:
                    continue
                self._clear(disk, wipe)
                self.looks[wipe] = min(self.looks.get(wipe, 0) + 1, self.wipe_looks)
                if self.looks[wipe] == self.wipe_looks:
                    self.wiped.add(wipe)

    def _clear(self, disk: FakeDisk, fingerprint: str) -> None:
        if disk.fingerprint == fingerprint and disk.content:
            self.erased.append((fingerprint, disk.content))
            disk.content = ""


def _is_foreign(disk: FakeDisk) -> bool:
    return bool(disk.content) and not disk.worker_uuid


@dataclass(slots=True)
class FakeAgents:
    """The agents of a cluster, by the address of their pods."""

    by_host: dict[str, FakeAgent] = field(default_factory=dict)
    proved: list[bool] = field(default_factory=list)
    """Of each connection, whether the operator showed a certificate."""

    def of(self, node: str) -> FakeAgent:
        """Return the agent of a node."""
        return next(agent for agent in self.by_host.values() if agent.node == node)

    def dial(self, endpoint: str, tls: AdminTls | None) -> "FakeAgentAdmin":
        """Return the admin service at an endpoint. Nothing is proved here."""
        self.proved.append(tls is not None)
        return FakeAgentAdmin(self, endpoint.rpartition(":")[0])

    def hand_drives(self, node: str, resource: str) -> Sequence[bytes]:
        """As SimulatedKubelets.hand_drives."""
        agents = [agent for agent in self.by_host.values() if agent.node == node]
        return agents[0].hand_over(resource) if agents else ()


@dataclass(slots=True)
class FakeAgentAdmin:
    """AgentAdmin of whatever agent has the address now."""

    agents: FakeAgents
    host: str

    async def facts(self) -> pb.AgentFacts:
        """As AgentAdmin."""
        return self._agent().facts()

    async def apply(self, spec: pb.AgentSpec) -> int:
        """As AgentAdmin."""
        return self._agent().apply(spec)

    async def close(self) -> None:
        """As AgentAdmin."""

    def _agent(self) -> FakeAgent:
        agent = self.agents.by_host.get(self.host)
        if agent is None or not agent.up:
            raise PeerGone(f"UNAVAILABLE: nobody answers at {self.host}")
        return agent
