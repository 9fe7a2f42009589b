"""Forged requests on shared memory: each costs the client, never the node or another client."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memkv import limits
from memkv.limits import KIB, MIB
from memkv.status import Status
from memkv.testing.memory_store import MemoryStore
from memkv.testing.running_worker import RunningWorker, running_worker
from memkv.testing.shared_memory import SharedMemory
from memkv.testing.waiting import eventually
from memkv.testing.wire_client import Block, Lane, RequestFailed, Wire, WireClient
from memkv.wire.frame import encode_frame
from memkv.wire.local import (
    Access,
    LocalGetItem,
    Part,
    RegisterRequest,
    encode_local_get,
    encode_parts,
)
from memkv.wire.opcodes import Flag, Opcode
from memkv.wire.ticket import Rights

SIZE = MIB
ALL = Access.READ | Access.WRITE
ID = bytes(range(32))
DATA = os.urandom(100_000)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def worker(store: MemoryStore, tmp_path: Path) -> Iterator[RunningWorker]:
    with running_worker(store, lane_threads=4, local_dir=str(tmp_path / "run")) as running:
        yield running
        statistics = running.server.statistics()
        assert statistics.events.internal_errors == 0
    assert store.pinned == 0
    assert store.puts_open == 0
    assert running.server._sessions.budget.regions == 0
    assert running.server._sessions.budget.mapped_bytes == 0


@pytest.fixture
def client(worker: RunningWorker) -> WireClient:
    return worker.client()


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    with SharedMemory(SIZE) as memory:
        yield memory


@pytest.fixture
def lane(client: WireClient, memory: SharedMemory) -> Lane:
    """A lane with the memory as region 1, and the block ID in the store."""
    assert client.lane().put([Block(ID, DATA)]) == [Status.OK]
    lane = client.local_lane()
    assert lane.register(RegisterRequest(1, ALL, 0, SIZE), [memory.fd])
    return lane


def get(lane: Lane, *parts: Part) -> Status:
    return lane.local_get([LocalGetItem(ID, parts)])[0].status


def held(*fds: int) -> int:
    """Return how often this process, in which the node lives, has these files open."""
    files = {(at.st_dev, at.st_ino) for at in map(os.fstat, fds)}
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            at = os.fstat(int(name))
            count += (at.st_dev, at.st_ino) in files
    return count


def refusal(act: Callable[[], object]) -> Status:
    with pytest.raises(RequestFailed) as failure:
        act()
    return failure.value.status


def test_a_block_is_placed_and_nothing_beside_it(lane: Lane, memory: SharedMemory) -> None:
    memory.write(0, b"\x55" * SIZE)
    assert get(lane, Part(1, 10, 40_000), Part(1, 500_000, 60_000)) is Status.OK
    assert memory.read(10, 40_000) + memory.read(500_000, 60_000) == DATA
    assert memory.read(0, 10) == b"\x55" * 10
    assert memory.read(40_010, 459_990) == b"\x55" * 459_990
    assert memory.read(560_000, SIZE - 560_000) == b"\x55" * (SIZE - 560_000)


def test_other_payload_operations_work_on_such_a_lane(lane: Lane) -> None:
    assert lane.get(ID)[0].payload == DATA
    assert lane.put([Block(b"o" * 32, DATA)]) == [Status.OK]
    assert get(lane, Part(1, 0, len(DATA))) is Status.OK


def test_a_put_is_what_lay_there_when_it_was_copied(
    lane: Lane, memory: SharedMemory, client: WireClient
) -> None:
    memory.write(4096, DATA)
    assert lane.local_put(b"p" * 32, [Part(1, 4096, len(DATA))], DATA) == [Status.OK]
    assert client.lane().get(b"p" * 32)[0].payload == DATA
    # Sums that are not those of the memory: torn, or a lie.
    memory.write(4096 + 50_000, b"torn")
    assert lane.local_put(b"q" * 32, [Part(1, 4096, len(DATA))], DATA) == [Status.CORRUPT]
    assert client.exists(b"q" * 32) == [0]


@pytest.mark.parametrize(
    "part",
    [
        Part(2, 0, 100_000),
        Part(0xFFFF_FFFF, 0, 100_000),
        Part(1, SIZE - 99_999, 100_000),
        Part(1, SIZE, 100_000),
        Part(1, 2**64 - 1, 100_000),
        Part(1, 2**64 - 100_000, 100_000),
        Part(1, 2**63, 100_000),
    ],
)
def test_forged_parts_are_refused_one_by_one(
    lane: Lane, memory: SharedMemory, part: Part
) -> None:
    before = memory.read(0, SIZE)
    good = LocalGetItem(ID, (Part(1, 0, 100_000),))
    got = lane.local_get([LocalGetItem(ID, (part,)), good])
    assert (got[0].status, got[1].status) == (Status.INVALID, Status.OK)
    assert memory.read(100_000, SIZE - 100_000) == before[100_000:]
    assert lane.local_put(b"f" * 32, [part], DATA) == [Status.INVALID]


def test_another_session_has_other_regions(
    worker: RunningWorker, lane: Lane, memory: SharedMemory
) -> None:
    other = worker.client().local_lane()
    assert get(other, Part(1, 0, 100_000)) is Status.INVALID


@pytest.mark.parametrize("access", [Access.READ, Access.WRITE])
def test_access_is_what_was_agreed(
    client: WireClient, memory: SharedMemory, access: Access
) -> None:
    client.lane().put([Block(ID, DATA)])
    memory.write(0, DATA)
    lane = client.local_lane()
    assert lane.register(RegisterRequest(1, access, 0, SIZE), [memory.fd])
    may_write, may_read = access == Access.WRITE, access == Access.READ
    assert get(lane, Part(1, 0, len(DATA))) is (Status.OK if may_write else Status.INVALID)
    wanted = Status.OK if may_read else Status.INVALID
    assert lane.local_put(b"a" * 32, [Part(1, 0, len(DATA))], DATA) == [wanted]


@pytest.mark.parametrize(
    ("name", "frame"),
    [
        ("no parts", encode_local_get([LocalGetItem(ID, ())])),
        ("an empty part", encode_local_get([LocalGetItem(ID, (Part(1, 0, 0),))])),
        ("more than a block", encode_local_get([LocalGetItem(ID, (Part(1, 0, 2**25),))])),
        ("an overflow", encode_local_get([LocalGetItem(ID, (Part(1, 0, 2**63),) * 2)])),
        ("257 parts", encode_local_get([LocalGetItem(ID, (Part(1, 0, 1),) * 257)])),
        ("half a part", encode_local_get([LocalGetItem(ID, (Part(1, 0, 1),))])[:-12]),
        ("a part too many", encode_local_get([LocalGetItem(ID, (Part(1, 0, 1),))]) + bytes(24)),
    ],
)
def test_malformed_bodies_close_the_lane(
    worker: RunningWorker, lane: Lane, name: str, frame: bytes
) -> None:
    lane.send(encode_frame(Opcode.LOCAL_GET, 0, 9, frame, count=1, deadline_ms=1000))
    assert refusal(lane.answer) is Status.PROTOCOL
    assert lane.is_closed_by_peer()


def test_a_put_whose_parts_do_not_fit_its_length_closes_the_lane(lane: Lane) -> None:
    lane.send(
        encode_frame(
            Opcode.LOCAL_PUT, Flag.LAST, 9, bytes(88) + encode_parts([Part(1, 0, 5)]), count=1
        )
    )
    assert refusal(lane.answer) is Status.PROTOCOL
    assert lane.is_closed_by_peer()


def test_shared_memory_is_for_the_unix_socket_only(client: WireClient, lane: Lane) -> None:
    over_tcp = client.lane()
    body = encode_local_get([LocalGetItem(ID, (Part(1, 0, 100_000),))])
    over_tcp.send(encode_frame(Opcode.LOCAL_GET, 0, 9, body, count=1, deadline_ms=1000))
    assert refusal(over_tcp.answer) is Status.PROTOCOL
    assert over_tcp.is_closed_by_peer()


def test_sessions_are_not_opened_there(client: WireClient) -> None:
    with Wire(Path(client.granted.local_path)) as wire:
        wire.send(client.session.encode_hello())
        assert refusal(wire.answer) is Status.PROTOCOL
    with Wire(Path(client.granted.local_path)) as wire:
        wire.send(
            encode_frame(Opcode.HELLO, Flag.LANE, 0, client.granted.session_uuid + bytes(32))
        )
        assert refusal(wire.answer) is Status.DENIED  # the token counts, not who connects


# --- descriptors -------------------------------------------------------------------------------


def pipe(tmp_path: Path) -> list[int]:
    return list(os.pipe())[:1]


def a_socket(tmp_path: Path) -> list[int]:
    return [socket.socket(socket.AF_UNIX).detach()]


def directory(tmp_path: Path) -> list[int]:
    return [os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)]


def device(tmp_path: Path) -> list[int]:
    return [os.open("/dev/zero", os.O_RDWR)]


def proc_file(tmp_path: Path) -> list[int]:
    return [os.open("/proc/self/mem", os.O_RDWR)]


def file(tmp_path: Path, flags: int, size: int = SIZE) -> list[int]:
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    return [os.open(path, flags)]


def read_only(tmp_path: Path) -> list[int]:
    return file(tmp_path, os.O_RDONLY)


def write_only(tmp_path: Path) -> list[int]:
    return file(tmp_path, os.O_WRONLY)


def appending(tmp_path: Path) -> list[int]:
    return file(tmp_path, os.O_RDWR | os.O_APPEND)


def path_only(tmp_path: Path) -> list[int]:
    return file(tmp_path, os.O_PATH)


def short(tmp_path: Path) -> list[int]:
    return file(tmp_path, os.O_RDWR, SIZE - 1)


def none(tmp_path: Path) -> list[int]:
    return []


def two(tmp_path: Path) -> list[int]:
    return file(tmp_path, os.O_RDWR) + file(tmp_path, os.O_RDWR)


def many(tmp_path: Path) -> list[int]:
    return [os.dup(0) for _ in range(100)]


def huge_pages(tmp_path: Path) -> list[int]:
    fd = os.memfd_create("huge", os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
    os.ftruncate(fd, 2 * MIB)  # no page of it need exist for this
    return [fd]


def sealed_for_good(tmp_path: Path) -> list[int]:
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SIZE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE)
    return [fd]


@pytest.mark.parametrize(
    "make",
    [pipe, a_socket, directory, device, proc_file, read_only, write_only, appending, path_only,
     short, none, two, many, huge_pages, sealed_for_good],
)  # fmt: skip
def test_descriptors_that_are_not_taken_are_closed(
    client: WireClient, lane: Lane, tmp_path: Path, make: Callable[[Path], list[int]]
) -> None:
    fds = make(tmp_path)
    before = held(*fds)
    request = RegisterRequest(7, ALL, 0, SIZE)
    assert refusal(lambda: lane.register(request, fds)) is Status.INVALID
    assert held(*fds) == before
    for fd in fds:
        os.close(fd)
    assert get(lane, Part(7, 0, 100_000)) is Status.INVALID
    assert get(lane, Part(1, 0, 100_000)) is Status.OK  # the lane is as it was


def test_descriptors_with_other_frames_go_with_the_lane(lane: Lane) -> None:
    sent = [os.memfd_create(name) for name in ("one", "two")]
    body = encode_local_get([LocalGetItem(ID, (Part(1, 0, 100_000),))])
    frame = encode_frame(Opcode.LOCAL_GET, 0, 9, body, count=1, deadline_ms=1000)
    lane.send_with_fds(frame, sent)
    assert lane.receive_items()[0].status is Status.OK
    # They count against the next REGISTER, which wants exactly one.
    with SharedMemory(SIZE) as memory:
        request = RegisterRequest(8, ALL, 0, SIZE)
        assert refusal(lambda: lane.register(request, [memory.fd])) is Status.INVALID
        assert held(*sent) == 2  # the test's own
        assert lane.register(request, [memory.fd])
    for fd in sent:
        os.close(fd)


def test_a_malformed_register_closes_what_came_with_it(
    worker: RunningWorker, lane: Lane, memory: SharedMemory
) -> None:
    connections = worker.server.statistics().connections
    before = held(memory.fd)
    lane.send_with_fds(encode_frame(Opcode.REGISTER, 0, 9, b"short"), [memory.fd, memory.fd])
    assert refusal(lane.answer) is Status.PROTOCOL
    assert lane.is_closed_by_peer()
    lane.close()
    eventually(
        lambda: worker.server.statistics().connections == connections - 1, "the lane's end"
    )
    eventually(lambda: held(memory.fd) == before, "the end of what came with the request")


def test_a_file_that_shrinks_harms_nobody(client: WireClient, lane: Lane, tmp_path: Path) -> None:
    [fd] = file(tmp_path, os.O_RDWR)
    assert not lane.register(RegisterRequest(2, ALL, 0, SIZE), [fd])  # not mapped
    os.ftruncate(fd, 10)
    assert lane.local_put(b"s" * 32, [Part(2, 0, len(DATA))], DATA) == [Status.INVALID]
    assert get(lane, Part(2, 0, 100_000)) is Status.OK  # written: the file is long enough again
    os.close(fd)
    with SharedMemory(SIZE, sealed=False) as unsealed:
        assert not lane.register(RegisterRequest(3, ALL, 0, SIZE), [unsealed.fd])
        os.ftruncate(unsealed.fd, 0)
        assert get(lane, Part(3, 0, 100_000)) is Status.OK
        os.ftruncate(unsealed.fd, SIZE)
        assert unsealed.read(0, 100) == DATA[:100]


def test_numbers_are_used_once_and_limits_hold(client: WireClient, memory: SharedMemory) -> None:
    lane = client.local_lane()
    request = RegisterRequest(1, ALL, 0, SIZE)
    assert lane.register(request, [memory.fd])
    assert refusal(lambda: lane.register(request, [memory.fd])) is Status.INVALID
    for number in range(2, limits.LOCAL_REGIONS_PER_SESSION_MAX + 1):
        assert lane.register(RegisterRequest(number, ALL, 0, 4 * KIB), [memory.fd])
    more = RegisterRequest(9999, ALL, 0, 4 * KIB)
    assert refusal(lambda: lane.register(more, [memory.fd])) is Status.BUSY
    lane.unregister(5)
    assert lane.register(more, [memory.fd])
    assert refusal(lambda: lane.unregister(5)) is Status.MISS


def test_mapped_memory_has_a_limit(client: WireClient, lane: Lane) -> None:
    fd = os.memfd_create("sparse", os.MFD_ALLOW_SEALING)
    size = limits.LOCAL_MAPPED_BYTES_PER_SESSION_MAX
    os.ftruncate(fd, 2 * size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    request = RegisterRequest(2, ALL, 0, size)
    assert refusal(lambda: lane.register(request, [fd])) is Status.BUSY  # 1 MiB is mapped already
    assert lane.register(RegisterRequest(2, ALL, 0, size - SIZE), [fd])
    lane.unregister(2)
    os.close(fd)


def test_a_ticket_without_rights_moves_nothing(
    worker: RunningWorker, memory: SharedMemory
) -> None:
    lane = worker.client(rights=Rights.NONE).local_lane()
    assert lane.register(RegisterRequest(1, ALL, 0, SIZE), [memory.fd])
    items = [LocalGetItem(ID, (Part(1, 0, 100_000),))]
    assert refusal(lambda: lane.local_get(items)) is Status.DENIED
    assert lane.local_put(ID, [Part(1, 0, len(DATA))], DATA) == [Status.DENIED]


def test_a_session_that_ends_is_answered_first(worker: RunningWorker, lane: Lane) -> None:
    """The end of a local lane means that nothing is written any more."""
    body = encode_local_get([LocalGetItem(ID, (Part(1, 0, 100_000),))])
    for _ in range(20):
        lane.send(encode_frame(Opcode.LOCAL_GET, 0, lane.new_id(), body, count=1, deadline_ms=900))
    worker.clients[0].control.close()  # type: ignore[union-attr]  # a WireClient
    answers = 0
    while True:
        try:
            answers += lane.receive()[0].header.opcode == Opcode.LOCAL_GET
        except (EOFError, ConnectionResetError):
            break
    assert answers <= 20
    eventually(lambda: worker.server.statistics().local_regions == 0, "the end of the region")
