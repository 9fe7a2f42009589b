"""Puts and gets of MemKV beside Mooncake Store and Redis: one run, loopback, DRAM, in turns.

    make bench-peers                  # installs the peers, then runs this
    python benchmarks/peers.py [--seconds S] [--pairs N] [--json FILE]

Each peer works as its users run it: Mooncake Store over TCP with registered buffers
(put_from, get_into), Redis by redis-py with hiredis. All move the same bytes, one block a call,
and the first bytes of each answer are looked at. MemKV checks all of them, the peers none. Gets
begin when the puts before them are done in the background too: MemKV writes them to flash.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from memkv import _hotpath, pattern
from memkv.bench.memory import page_aligned
from memkv.bench.statistics import gb_per_s, median, percentile
from memkv.bench.target import Sizing, own_pool
from memkv.client.options import PutOptions
from memkv.limits import GIB, MIB
from memkv.localpool.ports import free_ports
from memkv.status import Status

SIZES = (2 * MIB, 16 * MIB)
DATA_BYTES = 256 * MIB
START_TIMEOUT_S = 30.0
SEGMENT_BYTES = 3 * GIB
MEMKV_SIZING = Sizing(6 * GIB, 1536 * MIB, DATA_BYTES)
WANTED = {"Mooncake Store": 2.0, "Redis": 1.0}
"""What the ratio of gets to this peer must reach."""


class Peer(Protocol):
    """A store that is measured. A call moves one block and raises when that fails."""

    name: str

    def put(self, key: str, source: memoryview) -> None: ...
    def get(self, key: str, target: memoryview) -> None: ...
    def settle(self) -> None:
        """Wait for what puts left to do in the background: it must not run beside the gets."""

    def forget(self, keys: Sequence[str]) -> None:
        """Make room: puts must not run into a full store."""


class PeerMissing(Exception):
    """A peer is not installed; says how to install it."""


# --- peers -----------------------------------------------------------------------------------


@contextmanager
def memkv_peer(directory: Path) -> Iterator[Peer]:
    with own_pool(directory, MEMKV_SIZING) as target:
        client = target.client

        class MemKV:
            name = "MemKV"

            def put(self, key: str, source: memoryview) -> None:
                address = _hotpath.address_of(source)
                while True:
                    status = client.batch_put_from([key], [address], [len(source)])[0]
                    if status == 0:
                        return
                    if status != Status.BUSY:
                        raise RuntimeError(f"MemKV put: {Status(status).name}")

            def get(self, key: str, target: memoryview) -> None:
                address = _hotpath.address_of(target)
                result = client.batch_get_into([key], [address], [len(target)])[0]
                if result != len(target):
                    raise RuntimeError(f"MemKV get: {result}")

            def settle(self) -> None:
                # Written behind all others, so they are on flash when it is.
                if client.put("peers/last", b"last", PutOptions(durability="durable")) != 0:
                    raise RuntimeError("MemKV: a durable put failed")

            def forget(self, keys: Sequence[str]) -> None:
                client.batch_remove([*keys, "peers/last"])

        yield MemKV()


@contextmanager
def redis_peer(directory: Path) -> Iterator[Peer]:
    if not shutil.which("redis-server"):
        raise PeerMissing("redis-server is not installed: apt-get install redis-server")
    try:
        import redis
    except ImportError:
        raise PeerMissing("the package redis is not installed: make bench-peers") from None
    (port,) = free_ports(1)
    command = [
        "redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "",
        "--appendonly", "no", "--dir", str(directory), "--proto-max-bulk-len", "64mb",
    ]  # fmt: skip
    with running(command, directory / "redis.log"):
        client = redis.Redis(port=port, socket_timeout=30)
        wait_until(lambda: answers(client.ping), "redis-server")

        class Redis:
            name = "Redis"

            def put(self, key: str, source: memoryview) -> None:
                client.set(key, source)

            def get(self, key: str, target: memoryview) -> None:
                data = client.get(key)
                if not isinstance(data, bytes) or len(data) != len(target):
                    raise RuntimeError("Redis get: a miss")
                # Its library gives bytes of its own; an engine needs them in its buffer.
                _hotpath.copy_memory(target, data)

            def settle(self) -> None:
                """It keeps nothing but memory here."""

            def forget(self, keys: Sequence[str]) -> None:
                client.unlink(*keys)

        yield Redis()
        client.close()


@contextmanager
def mooncake_peer(directory: Path) -> Iterator[Peer]:
    """One master, one process that only gives memory, and this process as a client without any."""
    try:
        from mooncake.store import MooncakeDistributedStore
    except ImportError:
        raise PeerMissing("Mooncake Store is not installed: make bench-peers") from None
    rpc_port, metrics_port = free_ports(2)
    master = [
        str(Path(sys.executable).with_name("mooncake_master")), f"--rpc_port={rpc_port}",
        f"--metrics_port={metrics_port}", "--rpc_address=127.0.0.1",
    ]  # fmt: skip
    segment = [sys.executable, __file__, "--mooncake-segment", str(rpc_port)]
    with running(master, directory / "master.log"), running(segment, directory / "segment.log"):
        log = directory / "segment.log"
        wait_until(lambda: "ready" in log.read_text(errors="replace"), "the Mooncake segment")
        store = MooncakeDistributedStore()
        set_up_mooncake(store, rpc_port, 0, 512 * MIB)
        registered: set[int] = set()

        def address_of(buffer: memoryview) -> int:
            address = _hotpath.address_of(buffer)
            if address not in registered:
                store.register_buffer(address, len(buffer))
                registered.add(address)
            return address

        class Mooncake:
            name = "Mooncake Store"

            def put(self, key: str, source: memoryview) -> None:
                result = store.put_from(key, address_of(source), len(source))
                if result < 0:
                    raise RuntimeError(f"Mooncake put_from: {result}")

            def get(self, key: str, target: memoryview) -> None:
                result = store.get_into(key, address_of(target), len(target))
                if result != len(target):
                    raise RuntimeError(f"Mooncake get_into: {result}")

            def settle(self) -> None:
                """It keeps nothing but memory here."""

            def forget(self, keys: Sequence[str]) -> None:
                for key in keys:
                    store.remove(key)

        yield Mooncake()
        store.close()


class MooncakeStore(Protocol):
    """The part of its Python class that is used here."""

    def setup(
        self, host: str, metadata: str, segment: int, buffer: int, protocol: str, device: str,
        master: str,
    ) -> int: ...  # fmt: skip


def set_up_mooncake(
    store: MooncakeStore, rpc_port: int, segment_bytes: int, buffer_bytes: int
) -> None:
    """Connect; raises RuntimeError when the master refuses."""
    result = store.setup(
        "127.0.0.1", "P2PHANDSHAKE", segment_bytes, buffer_bytes, "tcp", "",
        f"127.0.0.1:{rpc_port}",
    )  # fmt: skip
    if result != 0:
        raise RuntimeError(f"Mooncake setup: {result}")


def serve_mooncake_segment(rpc_port: int) -> None:
    """The process whose memory holds the blocks."""
    from mooncake.store import MooncakeDistributedStore

    store = MooncakeDistributedStore()
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            set_up_mooncake(store, rpc_port, SEGMENT_BYTES, 64 * MIB)
            break
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
    print("ready", flush=True)
    while True:
        time.sleep(3600)


# --- processes -------------------------------------------------------------------------------


@contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[None]:
    """Run a process meanwhile; it ends with the block."""
    environment = {"MC_TCP_BIND_ADDRESS": "127.0.0.1", "GLOG_minloglevel": "2"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            env={**os.environ, **environment},
        )  # fmt: skip
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def answers(question: Callable[[], object]) -> bool:
    """Whether a question is answered without an exception."""
    try:
        question()
    except Exception:
        return False
    return True


def wait_until(ready: Callable[[], bool], what: str) -> None:
    """Wait, bounded."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready():
        if time.monotonic() > deadline:
            raise PeerMissing(f"{what} did not start within {START_TIMEOUT_S:g} s")
        time.sleep(0.1)


# --- measuring -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of one peer."""

    put_gbps: float
    get_gbps: float
    get_us: tuple[float, ...]


class Blocks:
    """One source and one target block; what is put is the source with the key's number in it."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.source = page_aligned(size_bytes)
        self.target = page_aligned(size_bytes)
        pattern.fill(self.source, 1)


def measure_turn(peer: Peer, blocks: Blocks, turn: int, seconds: float) -> Turn:
    """Put new blocks once, get them again and again, and forget them."""
    size = blocks.size_bytes
    keys = [f"peers/{size}/{turn}/{number}" for number in range(DATA_BYTES // size)]
    marks = [key.encode().ljust(64) for key in keys]
    put_s = 0.0
    for key, mark in zip(keys, marks, strict=True):
        blocks.source[:64] = mark
        before = time.perf_counter()
        peer.put(key, blocks.source)
        put_s += time.perf_counter() - before
    peer.settle()
    times: list[float] = []
    while sum(times) < seconds:
        number = len(times) * 7 % len(keys)  # not in the order of the puts
        before = time.perf_counter()
        peer.get(keys[number], blocks.target)
        times.append(time.perf_counter() - before)
        if blocks.target[:64] != marks[number]:
            raise RuntimeError(f"{peer.name} returned another block")
    peer.forget(keys)
    return Turn(
        gb_per_s(size * len(keys), put_s),
        gb_per_s(size * len(times), sum(times)),
        tuple(one * 1e6 for one in times),
    )


def measure(
    peers: Sequence[Peer], pairs: int, seconds: float
) -> dict[int, dict[str, list[Turn]]]:
    """Measure every size; peers take turns, and who begins changes."""
    found: dict[int, dict[str, list[Turn]]] = {}
    for size_bytes in SIZES:
        blocks = Blocks(size_bytes)
        turns: dict[str, list[Turn]] = {peer.name: [] for peer in peers}
        for peer in peers:
            measure_turn(peer, blocks, -1, seconds / 4)  # warms up, does not count
        for turn in range(pairs):
            for peer in [*peers[turn % len(peers) :], *peers[: turn % len(peers)]]:
                print(f"{size_bytes // MIB} MiB, turn {turn + 1}: {peer.name}", file=sys.stderr)
                turns[peer.name].append(measure_turn(peer, blocks, turn, seconds))
        found[size_bytes] = turns
    return found


def rows_of(found: dict[int, dict[str, list[Turn]]]) -> list[dict[str, object]]:
    """Return a row for each size and peer; ratios are medians over turns of MemKV / peer."""
    rows: list[dict[str, object]] = []
    for size_bytes, by_peer in found.items():
        mine = by_peer["MemKV"]
        for name, turns in by_peer.items():
            pairs = list(zip(mine, turns, strict=True))
            rows.append(
                {
                    "peer": name,
                    "size_bytes": size_bytes,
                    "put_gbps": median([turn.put_gbps for turn in turns]),
                    "get_gbps": median([turn.get_gbps for turn in turns]),
                    "get_p50_us": percentile([us for turn in turns for us in turn.get_us], 0.5),
                    "get_p99_us": percentile([us for turn in turns for us in turn.get_us], 0.99),
                    "memkv_put_ratio": median([a.put_gbps / b.put_gbps for a, b in pairs]),
                    "memkv_get_ratio": median([a.get_gbps / b.get_gbps for a, b in pairs]),
                    "wanted_get_ratio": WANTED.get(name),
                }
            )
    return rows


def print_table(rows: Sequence[dict[str, object]]) -> None:
    """Print the rows for people."""
    print(
        f"\n{'peer':<16} {'block':>7} {'put GB/s':>9} {'get GB/s':>9} {'get p50':>9}"
        f" {'get p99':>9}   MemKV get is"
    )
    for row in rows:
        wanted, ratio = row["wanted_get_ratio"], row["memkv_get_ratio"]
        verdict = ""
        if isinstance(wanted, float) and isinstance(ratio, float):
            word = "reached" if ratio >= wanted else "NOT reached"
            verdict = f"{ratio:.2f}x of it (wanted {wanted:g}x: {word})"
        print(
            f"{row['peer']:<16} {number(row, 'size_bytes') / MIB:>3.0f} MiB"
            f" {number(row, 'put_gbps'):>9.2f} {number(row, 'get_gbps'):>9.2f}"
            f" {number(row, 'get_p50_us') / 1000:>6.2f} ms"
            f" {number(row, 'get_p99_us') / 1000:>6.2f} ms   {verdict}"
        )
    print("GB = 10^9 bytes; loopback, DRAM, one block a call, medians of interleaved turns")


def number(row: dict[str, object], name: str) -> float:
    value = row[name]
    assert isinstance(value, int | float)
    return value


def main() -> int:
    """Run what is installed; a peer that is missing is named and left out."""
    parser = argparse.ArgumentParser(description="MemKV beside Mooncake Store and Redis.")
    parser.add_argument("--seconds", type=float, default=1.0, help="of gets in each turn")
    parser.add_argument("--pairs", type=int, default=5, help="turns of each peer")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    parser.add_argument("--mooncake-segment", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.mooncake_segment:
        serve_mooncake_segment(arguments.mooncake_segment)
        return 0
    directory = Path(tempfile.mkdtemp(prefix="memkv-peers-"))
    try:
        with ExitStack() as stack:
            peers = [stack.enter_context(memkv_peer(directory / "memkv"))]
            for opened in (mooncake_peer, redis_peer):
                try:
                    peers.append(stack.enter_context(opened(directory)))
                except PeerMissing as missing:
                    print(f"left out: {missing}", file=sys.stderr)
            rows = rows_of(measure(peers, arguments.pairs, arguments.seconds))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print_table(rows)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
