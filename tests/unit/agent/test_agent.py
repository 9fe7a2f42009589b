"""The agent as a whole over drives that are swapped, pulled and fought over, without a kubelet."""

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memkv.agent.agent import Agent
from memkv.agent.agent_config import AgentConfig
from memkv.agent.erasing import wipe
from memkv.agent.rules import Limits
from memkv.errors import ConfigError, MemKVError
from memkv.limits import GIB, MIB
from memkv.store.foreign import PROBE_BYTES
from memkv.store.layout import Superblock, encode_superblock
from memkv.testing.clock import ManualClock
from memkv.testing.node_disks import Crash, FakeDisks, FakeDrive
from memkv_proto import agent_admin_pb2 as pb

SIZE = 2 * GIB
POOL_A, POOL_B = "aaaaaaaa-0000", "bbbbbbbb-0000"


class Node:
    """An agent, again and again over the same disks and state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock()
        self.disks = FakeDisks()
        self.generation = 0
        self.agent = self.start()

    def start(self) -> Agent:
        (self.folder / "plugins").mkdir(exist_ok=True)
        config = AgentConfig(
            "node-a", self.folder / "state", plugin_dir=self.folder / "plugins",
            disks=Limits(size_bytes_min=GIB),
        )  # fmt: skip
        return Agent(config, self.clock, self.disks, self.disks.read)

    def restart(self) -> None:
        self.agent.stop()
        self.agent = self.start()

    def look(self) -> pb.AgentFacts:
        self.clock.advance_ms(60_000)
        while self.agent.step():
            pass
        return self.agent.facts()

    def disk(self, disk_id: str) -> pb.AgentDisk:
        (found,) = (disk for disk in self.look().disks if disk.id == disk_id)
        return found

    def apply(self, *assignments: pb.Assignment, wipes: tuple[str, ...] = ()) -> pb.AgentFacts:
        self.generation += 1
        self.agent.apply(
            pb.AgentSpec(generation=self.generation, assignments=assignments, wipes=wipes)
        )
        return self.look()

    def hand_out(self, pool: str) -> list[str]:
        return list(self.agent._hand_out(resource(pool)))


def resource(pool: str) -> str:
    return f"drives.memkv.io/group-{pool[:8]}"


def assign(pool: str, *drives: pb.AgentDisk, erase: bool = False) -> pb.Assignment:
    return pb.Assignment(
        pool_uid=pool,
        resource=resource(pool),
        drives=[
            pb.AssignedDrive(
                id=drive.id, fingerprint=drive.fingerprint, position=position, erase=erase
            )
            for position, drive in enumerate(drives)
        ],
    )


def format_store(drive: FakeDrive, uuid: bytes = b"d" * 16) -> None:
    """What a worker does with a blank drive."""
    drive.write(0, bytes(encode_superblock(Superblock(uuid, b"w" * 16, 1, SIZE, 32 * MIB, 60))))


@pytest.fixture
def node() -> Iterator[Node]:
    # Short: the path of a Unix socket has 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="memkv-"))
    node = Node(folder)
    yield node
    node.agent.stop()
    shutil.rmtree(folder)


def problem(facts: pb.AgentFacts, pool: str) -> str:
    (found,) = (a.problem for a in facts.assignments if a.pool_uid == pool)
    return found


def foreign(serial: str) -> FakeDrive:
    drive = FakeDrive(SIZE, serial)
    drive.write(0x438, b"\x53\xef")
    return drive


def test_facts_tell_every_disk(node: Node) -> None:
    node.disks.plug("sda", FakeDrive(SIZE, "S1"))
    node.disks.plug("sdb", foreign("S2"))
    stored = FakeDrive(SIZE, "S3")
    format_store(stored)
    node.disks.plug("sdc", stored)
    node.disks.plug("sdd", FakeDrive(100 * MIB, "S4"))
    held = FakeDrive(SIZE, "S5")
    held.held = True
    node.disks.plug("sde", held)
    broken = FakeDrive(SIZE, "S6")
    broken.broken = True
    node.disks.plug("sdf", broken)
    facts = node.look()
    told = [(d.content, d.content_description, d.unusable_reason, d.error) for d in facts.disks]
    assert [one[:2] for one in told[:3]] == [
        (pb.DRIVE_CONTENT_BLANK, "blank"),
        (pb.DRIVE_CONTENT_FOREIGN, "ext2, ext3 or ext4 file system"),
        (pb.DRIVE_CONTENT_MEMKV, "MemKV store"),
    ]
    assert [one[2] for one in told[:3]] == ["", "", ""]
    assert "too small" in told[3][2]
    assert told[4][2] == "open exclusively in another process"
    assert told[5][0] == pb.DRIVE_CONTENT_UNSPECIFIED
    assert "Input/output error" in told[5][3]
    assert facts.disks[2].device_uuid == b"d" * 16
    assert facts.node_name == "node-a"


def test_blank_drive_is_formatted_used_and_found_again(node: Node) -> None:
    drive = FakeDrive(SIZE, "S1")
    node.disks.plug("sda", drive)
    node.apply(assign(POOL_A, node.disk("sata-Fake_S1")))
    assert node.hand_out(POOL_A) == ["/dev/sda"]
    drive.held = True  # the pod runs
    format_store(drive)
    assert node.hand_out(POOL_A) == ["/dev/sda"]
    assert not node.disk("sata-Fake_S1").unusable_reason
    assert node.disk("sata-Fake_S1").assigned
    drive.held = False
    node.restart()
    node.disks.pull("sda")
    node.look()
    with pytest.raises(MemKVError, match="missing"):
        node.hand_out(POOL_A)
    node.disks.plug("sdq", drive)  # back, in another slot, before anybody looked
    assert node.hand_out(POOL_A) == ["/dev/sdq"]


def test_foreign_drive_is_erased_only_with_approval(node: Node) -> None:
    drive = foreign("S1")
    node.disks.plug("sda", drive)
    found = node.disk("sata-Fake_S1")
    facts = node.apply(assign(POOL_A, found))
    assert "other content" in problem(facts, POOL_A)
    assert drive.writes == 0
    with pytest.raises(MemKVError):
        node.hand_out(POOL_A)
    node.apply(assign(POOL_A, found, erase=True))
    assert not any(drive.head)
    assert node.hand_out(POOL_A) == ["/dev/sda"]
    format_store(drive)
    assert node.hand_out(POOL_A) == ["/dev/sda"]


def test_change_between_approval_and_erasure(node: Node) -> None:
    drive = foreign("S1")
    node.disks.plug("sda", drive)
    approved = node.disk("sata-Fake_S1")
    drive.write(900_000, b"new data")
    facts = node.apply(assign(POOL_A, approved, erase=True))
    assert drive.writes == 0
    assert problem(facts, POOL_A)
    assert b"new data" in drive.head


def test_swapped_drive_is_neither_erased_nor_handed_out(node: Node) -> None:
    node.disks.plug("sda", foreign("S1"))
    approved = node.disk("sata-Fake_S1")
    other = foreign("S2")
    node.disks.plug("sda", other)
    node.apply(assign(POOL_A, approved, erase=True))
    assert other.writes == 0
    with pytest.raises(MemKVError, match="missing"):
        node.hand_out(POOL_A)
    # The same name, made to be the same: another disk with a copied serial number and other size.
    twin = FakeDrive(SIZE + GIB, "S1")
    node.disks.plug("sda", twin)
    with pytest.raises(MemKVError):
        node.hand_out(POOL_A)


def test_other_store_on_the_same_drive_is_not_handed_out(node: Node) -> None:
    drive = FakeDrive(SIZE, "S1")
    node.disks.plug("sda", drive)
    node.apply(assign(POOL_A, node.disk("sata-Fake_S1")))
    format_store(drive)
    assert node.hand_out(POOL_A)
    format_store(drive, b"e" * 16)
    with pytest.raises(MemKVError, match="other content"):
        node.hand_out(POOL_A)


def test_path_that_leads_elsewhere_is_not_handed_out(node: Node) -> None:
    node.disks.plug("sda", FakeDrive(SIZE, "S1"))
    node.apply(assign(POOL_A, node.disk("sata-Fake_S1")))
    node.disks.leads_elsewhere.add("sda")
    with pytest.raises(MemKVError, match="does not lead"):
        node.hand_out(POOL_A)


def test_drive_of_a_running_pod_goes_to_no_other_pool(node: Node) -> None:
    drive = FakeDrive(SIZE, "S1")
    node.disks.plug("sda", drive)
    node.apply(assign(POOL_A, node.disk("sata-Fake_S1")))
    assert node.hand_out(POOL_A)
    format_store(drive)
    drive.held = True
    now = node.disk("sata-Fake_S1")
    facts = node.apply(assign(POOL_B, now, erase=True), wipes=())
    assert "open in another process" in problem(facts, POOL_B)
    with pytest.raises(MemKVError):
        node.hand_out(POOL_B)
    with pytest.raises(MemKVError, match="assigned to no pod"):
        node.hand_out(POOL_A)  # its container cannot start again
    assert drive.writes == 0
    drive.held = False
    node.look()
    assert node.hand_out(POOL_B) == ["/dev/sda"]


def test_a_wipe_says_how_far_it_is_and_not_only_that_its_disk_looks_blank(node: Node) -> None:
    drive = FakeDrive(SIZE, "S1")
    node.disks.plug("sda", drive)
    format_store(drive)
    asked = node.disk("sata-Fake_S1").fingerprint
    (found,) = node.agent._inventory.look(set())
    steps = wipe(found.device, asked, node.disks, node.agent._journal)
    zeroed = next(steps)
    steps.close()  # as an agent that ends in the middle
    node.agent.apply(pb.AgentSpec(generation=1, wipes=[asked]))
    node.clock.advance_ms(60_000)
    node.agent._wipe = lambda wipes, problems: False  # type: ignore[method-assign]  # a busy drive
    node.agent.step()
    (told,) = node.agent.facts().wipes
    assert (told.done, told.wiped_bytes) == (False, zeroed)
    assert node.agent.facts().disks[0].content == pb.DRIVE_CONTENT_BLANK


def test_a_call_that_comes_during_a_wipe_waits_for_one_piece_of_it(node: Node) -> None:
    """Kubelet gives a container's devices up after seconds; a drive is wiped for minutes."""
    for name, serial in (("sda", "S1"), ("sdb", "S2")):
        node.disks.plug(name, FakeDrive(SIZE, serial))
    format_store(node.disks.drives["sda"][1])
    asked = node.disk("sata-Fake_S1").fingerprint
    node.apply(assign(POOL_B, node.disk("sata-Fake_S2")))
    answers: list[list[str]] = []
    caller = threading.Thread(target=lambda: answers.append(node.hand_out(POOL_B)))
    pieces = 0

    def call_in_the_third_piece() -> None:
        nonlocal pieces
        pieces += 1
        if pieces == 2 + 3:  # after both ends
            caller.start()
            while not node.agent._turn.wanted:
                assert caller.is_alive()

    node.disks.during_zero = call_in_the_third_piece
    spec = pb.AgentSpec(assignments=[assign(POOL_B, node.disk("sata-Fake_S2"))], wipes=[asked])
    spec.generation = node.generation + 1
    node.agent.apply(spec)
    assert node.agent.step()
    caller.join(60)
    assert answers == [["/dev/sdb"]]
    assert pieces == 2 + 3
    node.disks.during_zero = lambda: None
    (told,) = node.look().wipes  # and it goes on to its end
    assert told.done


def test_wipe_waits_for_the_pod_and_is_told_once_done(node: Node) -> None:
    drive = FakeDrive(SIZE, "S1")
    node.disks.plug("sda", drive)
    format_store(drive)
    drive.held = True
    asked = node.disk("sata-Fake_S1").fingerprint
    assert "still open" in node.apply(wipes=(asked,)).wipes[0].problem
    drive.held = False
    (told,) = node.look().wipes
    assert (told.done, told.problem) == (True, "")
    assert not any(drive.head)
    node.restart()
    node.disks.pull("sda")
    assert node.look().wipes[0].done
    # Nothing of a new store on the drive is touched by the old request.
    again = FakeDrive(SIZE, "S1")
    format_store(again)
    node.disks.plug("sda", again)
    node.look()
    assert again.writes == 0


def test_crash_in_the_middle_of_an_erasure(node: Node) -> None:
    drive = foreign("S1")
    node.disks.plug("sda", drive)
    approved = node.disk("sata-Fake_S1")
    node.disks.crash_after_sectors = 300  # the end is zero and looks harmless, the head is not
    with pytest.raises(Crash):
        node.apply(assign(POOL_A, approved, erase=True))
    node.disks.crash_after_sectors = None
    node.restart()
    node.look()
    assert not any(drive.head)
    assert node.hand_out(POOL_A) == ["/dev/sda"]


def test_crash_after_the_erasure_and_before_it_was_noted(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive = foreign("S1")
    node.disks.plug("sda", drive)
    approved = node.disk("sata-Fake_S1")

    def crash(grants: object) -> None:
        if grants:
            raise Crash

    monkeypatch.setattr(node.agent._state, "keep_grants", crash)
    with pytest.raises(Crash):
        node.apply(assign(POOL_A, approved, erase=True))
    node.restart()
    node.look()
    assert node.hand_out(POOL_A) == ["/dev/sda"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda s: s.assignments[1].drives[0].MergeFrom(s.assignments[0].drives[0]), "is assigned"),
        (lambda s: s.assignments[1].__setattr__("resource", s.assignments[0].resource), "twice"),
        (lambda s: s.assignments[0].__setattr__("resource", "cpu"), "is not drives.memkv.io"),
        (lambda s: s.assignments[0].__setattr__("resource", "drives.memkv.io/../x"), "is not"),
        (lambda s: s.assignments[0].__setattr__("pool_uid", ""), "of no pool"),
        (lambda s: s.assignments[0].drives[0].__setattr__("position", 1), "positions"),
        (lambda s: s.assignments[0].drives[0].__setattr__("fingerprint", "x"), "no fingerprint"),
        (lambda s: s.assignments[0].ClearField("drives"), "positions"),
        (lambda s: s.wipes.append(s.assignments[0].drives[0].fingerprint), "shall be wiped"),
        (lambda s: s.wipes.append("../x"), "no fingerprint"),
    ],
)
def test_contradicting_spec_changes_nothing(
    node: Node, spoil: Callable[[pb.AgentSpec], object], reason: str
) -> None:
    """Two pools never get one drive, nor a drive that shall be wiped."""
    node.disks.plug("sda", foreign("S1"))
    node.disks.plug("sdb", foreign("S2"))
    one, two = node.disk("sata-Fake_S1"), node.disk("sata-Fake_S2")
    spec = pb.AgentSpec(
        generation=7, assignments=[assign(POOL_A, one, erase=True), assign(POOL_B, two, erase=True)]
    )
    spoil(spec)
    with pytest.raises(ConfigError, match=reason):
        node.agent.apply(spec)
    assert node.look().spec_generation == 0
    assert all(drive.writes == 0 for _, drive in node.disks.drives.values())


def test_older_and_other_specs_are_refused(node: Node) -> None:
    node.disks.plug("sda", FakeDrive(SIZE, "S1"))
    spec = pb.AgentSpec(generation=3, assignments=[assign(POOL_A, node.disk("sata-Fake_S1"))])
    node.agent.apply(spec)
    node.agent.apply(spec)
    for other in (pb.AgentSpec(generation=2), pb.AgentSpec(generation=3), pb.AgentSpec()):
        with pytest.raises(ValueError):
            node.agent.apply(other)
    node.restart()
    assert node.look().spec_generation == 3
    assert node.hand_out(POOL_A)


def test_look_that_fails_hands_nothing_out(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.disks.plug("sda", FakeDrive(SIZE, "S1"))
    node.apply(assign(POOL_A, node.disk("sata-Fake_S1")))

    def fail(root: Path, loop_file: object) -> None:
        raise ConfigError("cannot read mounts")

    monkeypatch.setattr(node.agent._inventory, "_read", fail)
    facts = node.look()
    assert "cannot read mounts" in facts.problems
    assert "cannot read mounts" in problem(facts, POOL_A)
    with pytest.raises(ConfigError):
        node.hand_out(POOL_A)


def test_two_agents_do_not_share_a_folder(node: Node) -> None:
    with pytest.raises(ConfigError, match="another agent"):
        node.start()


def test_damaged_state_is_told_with_the_fix(node: Node) -> None:
    node.agent.stop()
    for name in ("agentspec", "grants.json", "wiped.json"):
        file = node.folder / "state" / name
        before = file.read_bytes() if file.exists() else None
        file.write_bytes(b"\xff{")
        with pytest.raises(ConfigError, match="remove it"):
            node.start()
        file.unlink() if before is None else file.write_bytes(before)
    node.agent = node.start()


def test_health_page_of_an_nvme_drive() -> None:
    from memkv.io.nvme_health import PAGE_BYTES, Health, parse_health

    page = bytearray(PAGE_BYTES)
    page[0], page[5] = 0b1001, 104
    page[160:176] = (7).to_bytes(16, "little")
    assert parse_health(bytes(page)) == Health(104, 7, "spare blocks run out, read-only")
    assert PROBE_BYTES == MIB
