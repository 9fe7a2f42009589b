"""The worker process: one drive, one store, one data port. Started by the supervisor only.

`python -m memkv.node.worker_main FD PID`: FD is the inherited end of a socketpair (see `messages`),
PID the supervisor's. The worker ends when that socket does, and is killed with the supervisor.
"""

import ctypes
import logging
import os
import random
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from memkv import limits
from memkv.clock import Clock, SystemClock
from memkv.errors import ConfigError, MemKVError, ProtocolError
from memkv.io.file_device import FileDevice, refuse_device_name
from memkv.io.numa import numa_node_of
from memkv.metadata.certificates import node_name, read_pem
from memkv.node.config import WorkerConfig
from memkv.node.drive_health import DriveHealth
from memkv.node.identity import WorkerIdentity
from memkv.node.messages import (
    Failed,
    Identity,
    MapMessage,
    MessageChannel,
    Quota,
    Quotas,
    Report,
    Start,
    Stop,
    map_bytes,
)
from memkv.node.moves.keeper import MoveKeeper, first_memory
from memkv.node.moves.memory import MoveMemory, load_memory, save_memory
from memkv.node.moves.peer import PeerSession
from memkv.node.moves.tickets import AnonymousPeerTickets, PeerTickets
from memkv.node.moves.view import nobodys_map
from memkv.node.samples import (
    move_samples,
    rail_samples,
    server_samples,
    store_samples,
    tenant_usages,
)
from memkv.node.server import WorkerServer
from memkv.node.store_adapter import NodeStore
from memkv.rdma.discovery import Fabric
from memkv.rdma.driver import PyVerbs
from memkv.rdma.rails import RailOptions, Rails, RailStatistics
from memkv.rdma.verbs import VerbsError
from memkv.shardmap import MapInvalid, MapVersion, ShardMap, decode_map
from memkv.shardmap import Worker as ShardWorker
from memkv.store.api import Store, open_store
from memkv.store.config import StoreConfig, TenantQuota
from memkv.tcp.tls import ClientContexts, ServerContexts

log = logging.getLogger("memkv.node")

PR_SET_PDEATHSIG = 1


def die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies; at once when it is dead already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        log.warning("prctl refused: a supervisor that is killed leaves workers to notice")
    if os.getppid() != parent_pid:
        os._exit(1)


def open_drive(path: Path, capacity_bytes: int) -> FileDevice:
    """Own a drive, making a file of `capacity_bytes` where there is none. ConfigError."""
    if path.exists():
        return FileDevice.open(str(path))
    refuse_device_name(str(path))
    if not capacity_bytes:
        raise ConfigError(
            f"{path} does not exist: give its capacity to have a file made, or mount it"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    size_bytes = capacity_bytes // limits.SECTOR_BYTES * limits.SECTOR_BYTES
    return FileDevice.create(str(path), size_bytes)


def server_contexts(start: Start, clock: Clock) -> ServerContexts | None:
    """Return what the data port encrypts with; None: it is plain. ConfigError."""
    if not start.tls_certificate:
        return None
    return ServerContexts(Path(start.tls_certificate), Path(start.tls_key), clock)


def peer_contexts(start: Start) -> ClientContexts | None:
    """Return what sessions with other workers are encrypted with."""
    if not start.tls_authority:
        return None
    authority = Path(start.tls_authority)
    return ClientContexts(lambda: read_pem(authority), node_name(start.pool))


def open_rails(start: Start, memory: memoryview, clock: Clock) -> Rails | str:
    """Return the RDMA ports to serve on, or why there are none; empty: none are wanted."""
    if not start.rdma:
        return ""
    verbs = PyVerbs()
    try:
        if not start.rdma_devices and not verbs.device_names():
            return "this machine has no RDMA device"
        return Rails(verbs, memory, rail_options(start), clock)
    except VerbsError as error:
        return str(error)


def rail_options(start: Start) -> RailOptions:
    """Return what the supervisor says of RDMA. Drives and NICs are best on one NUMA node."""
    near = numa_node_of(Path(start.drive))
    return RailOptions(
        start.rdma_devices, start.rdma_gid_index, start.rdma_traffic_class, near,
        Fabric(start.rdma_fabric),
    )  # fmt: skip


def problem_text(rails: Rails | str) -> str:
    """Return why some rails do not serve, in one line."""
    if isinstance(rails, str):
        return rails
    return "; ".join(f"{name}: {problem}" for name, problem in rails.problems.items())


def store_quotas(quotas: Sequence[Quota]) -> tuple[TenantQuota, ...]:
    """Return the supervisor's quotas as the store has them."""
    return tuple(TenantQuota(q.tenant, q.flash_bytes, q.memory_bytes) for q in quotas)


class Worker:
    """A store being served. Made from the supervisor's first message."""

    def __init__(self, start: Start, channel: MessageChannel, clock: Clock) -> None:
        """Open drive and store. ConfigError when they are unfit."""
        self._start = start
        self._channel = channel
        self._clock = clock
        self._stopping = threading.Event()
        self._serving = threading.Event()
        self._identity = WorkerIdentity(trusting=start.trusting)
        server_tls = server_contexts(start, clock)
        state_file = Path(start.state_dir) / f"worker-{start.position}.slots"
        memory = load_memory(state_file)
        drive = Path(start.drive)
        is_new = not drive.exists()
        self._device = open_drive(drive, start.capacity_bytes)
        try:
            self.store = self._open_store(memory or MoveMemory())
        except BaseException as error:
            if is_new:  # a next start with other settings must not find a file of the wrong size
                drive.unlink(missing_ok=True)
            self._device.close()
            if isinstance(error, ConfigError):
                raise ConfigError(f"{drive}: {error}") from error
            raise
        block = self._device.block
        self._health = DriveHealth(start.drive, block, clock) if block is not None else None
        self._peer_tls = peer_contexts(start)
        superblock = self.store.superblock
        self._uuid = superblock.worker_uuid
        self._rails = open_rails(start, self.store.memory, clock)
        if problem := problem_text(self._rails):
            log.info("RDMA: %s", problem)
        self._server = WorkerServer(
            NodeStore(self.store, lambda epoch: self._keeper.generation_at(epoch)),
            WorkerConfig(
                start.pool,
                self._uuid,
                superblock.incarnation,
                start.host,
                start.port,
                lane_threads=start.lane_threads or limits.LANE_THREADS_DEFAULT,
                local_dir=start.local_dir,
            ),
            clock,
            self._identity.verifier,
            tls=server_tls,
            rails=self._rails if isinstance(self._rails, Rails) else None,
        )
        self._keeper = MoveKeeper(
            self._uuid,
            self.store,
            self._connect,
            self._server.set_map,
            state_file,
            memory or self._first_memory(state_file),
            clock,
            self._served_bytes,
        )
        self._reporter = threading.Thread(target=self._report, name="memkv-report", daemon=True)

    def _connect(self, peer: ShardWorker, version: MapVersion) -> PeerSession:
        tickets: PeerTickets = self._identity.peer_tickets
        if not self._identity.verifier.is_signed:
            tickets = AnonymousPeerTickets(self._start.pool, self._clock)
        return PeerSession(self._start.pool, self._uuid, peer, version, tickets, self._clock,
                           self._peer_tls)  # fmt: skip

    def _first_memory(self, state_file: Path) -> MoveMemory:
        formatted = self.store.recovery.formatted
        memory = first_memory(self.store, self._start.slots, formatted=formatted)
        # Kept at once: a worker that never gets a map, or ends before it serves, must find at its
        # next start that nothing is missing, or it would forget its blocks.
        try:
            save_memory(state_file, memory)
        except OSError as error:
            log.warning("cannot keep %s: %s; free space there", state_file, error.strerror)
        return memory

    def _served_bytes(self) -> int:
        return self._server.payload_bytes

    def _open_store(self, memory: MoveMemory) -> Store:
        start = self._start
        config = StoreConfig(
            memory_bytes=start.memory_bytes,
            huge_page_bytes=start.huge_page_bytes,
            discard=start.discard,
            slots=start.slots,
            quotas=store_quotas(start.quotas),
            slot_floors=memory.floors,
            tenant_floors=memory.tenant_floors,
        )
        return open_store(self._device, config, self._clock, random.SystemRandom())

    def run(self) -> None:
        """Serve until the supervisor says stop or is gone."""
        self._reporter.start()
        if self._health is not None:
            self._health.start()
        self._keeper.start()
        if self._start.needs_map:
            self._server.set_map(nobodys_map(self._start.slots))
        while (message := self._channel.receive()) is not None:
            if isinstance(message, Stop):
                return
            if isinstance(message, MapMessage):
                self._take_map(message)
            elif isinstance(message, Quotas):
                self.store.set_quotas(store_quotas(message.quotas))
            elif isinstance(message, Identity):
                self._identity.take(message)
                self._serve()
            else:
                raise ProtocolError(f"a supervisor sent {type(message).__name__}")

    def _serve(self) -> None:
        """Listen, once it is known whose tickets are good."""
        if not self._serving.is_set():
            self._server.start()
            self._serving.set()

    def close(self) -> None:
        """Stop serving and close the store cleanly, so that the next start is quick."""
        self._stopping.set()
        if self._health is not None:
            self._health.stop()
        self._keeper.stop()
        self._server.stop()
        if isinstance(self._rails, Rails):
            self._rails.close()
        self.store.close(clean=True)
        self._device.close()
        if self._reporter.ident is not None:
            self._reporter.join()

    def _take_map(self, message: MapMessage) -> None:
        try:
            shard_map: ShardMap = decode_map(map_bytes(message))
        except MapInvalid as error:
            log.error("the supervisor passed on a bad map: %s", error)
            return
        if shard_map.slots != self._start.slots:
            raise ConfigError(
                f"the pool has {shard_map.slots} slots, this node is configured for "
                f"{self._start.slots}: set the same number"
            )
        self._keeper.offer(shard_map)

    def _report(self) -> None:
        told = "healthy"
        while not self._stopping.is_set():
            report = self.report()
            if report.drive_state != told:
                told = report.drive_state
                self._tell_drive(report)
            if not self._channel.send(report):
                return
            self._stopping.wait(limits.WORKER_REPORT_INTERVAL_MS / 1000)

    def _tell_drive(self, report: Report) -> None:
        level = {"healthy": logging.INFO, "suspect": logging.WARNING}
        log.log(
            level.get(report.drive_state, logging.ERROR), "worker %d: drive %s is %s: %s",
            self._start.position, self._start.drive, report.drive_state,
            report.drive_problem or "no errors for a while",
        )  # fmt: skip

    def report(self) -> Report:
        """Return what the supervisor gets to know."""
        superblock = self.store.superblock
        statistics = self.store.statistics()
        serving = self._serving.is_set()
        moves = self._keeper.statistics()
        rails = self._rails
        samples = [*store_samples(statistics)]
        if serving:
            samples += server_samples(self._server.statistics())
            samples += move_samples(moves)
        rdma = rails.statistics() if isinstance(rails, Rails) else RailStatistics()
        samples += rail_samples(rdma)
        if self._health is not None:
            samples += self._health.samples()
        return Report(
            uuid=self._uuid.hex(),
            incarnation=superblock.incarnation,
            port=self._server.port if serving else 0,
            capacity_bytes=statistics.capacity_bytes,
            used_bytes=sum(tenant.flash_bytes for tenant in statistics.tenants),
            lineage=moves.lineage.hex(),
            applied_epoch=moves.applied_epoch,
            finished=tuple(sorted(moves.finished)),
            flash_guaranteed_bytes_max=statistics.quota_bytes_max,
            memory_guaranteed_bytes_max=statistics.memory_quota_bytes_max,
            tenants=tuple(tenant_usages(statistics)),
            drive_state=statistics.drive_state,
            drive_problem=statistics.drive_problem,
            samples=tuple(samples),
            rdma_rails=rdma.usable,
            rdma_problem=problem_text(rails),
        )


def run_worker(channel: MessageChannel, clock: Clock) -> int:
    """Run a worker over its channel; return the process's exit status."""
    start = channel.receive()
    if not isinstance(start, Start):
        return 1
    worker: Worker | None = None
    try:
        worker = Worker(start, channel, clock)
        worker.run()
    except MemKVError as error:
        log.error("worker %d: %s", start.position, error)
        channel.send(Failed(str(error)))
        return 2
    finally:
        if worker is not None:
            worker.close()
    return 0


def end_process(failure: threading.ExceptHookArgs) -> None:
    """End a worker one of whose threads died of a bug: half a worker would look like a whole one,
    and the supervisor starts another."""
    thread = failure.thread.name if failure.thread is not None else "?"
    log.critical(
        "thread %s died of a bug; please report this. The worker ends", thread,
        exc_info=failure.exc_value,
    )  # fmt: skip
    logging.shutdown()
    os._exit(3)


def main() -> None:
    """Entry point of the process."""
    threading.excepthook = end_process
    logging.basicConfig(
        level=os.environ.get("MEMKV_LOG_LEVEL", "info").upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    if len(sys.argv) != 3:
        raise SystemExit("this is started by `memkv node`; it takes a socket and a process id")
    descriptor, parent_pid = int(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the supervisor, which says stop
    die_with(parent_pid)
    channel = MessageChannel(socket.socket(fileno=descriptor))
    sys.exit(run_worker(channel, SystemClock()))


if __name__ == "__main__":
    main()
