"""`memkv node`: one supervisor for all workers of a node.

It starts the workers and starts them again, watches the shard map and hands it to them, answers
NodeAdmin, and serves merged metrics. Without a metadata service it goes on with the map it kept.
"""

import fcntl
import json
import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry

from memkv.clock import Clock, SystemClock
from memkv.daemons import run_until_signalled, software_version
from memkv.errors import ConfigError
from memkv.metadata.certificate_metric import CertificateCollector
from memkv.metadata.certificates import admin_name
from memkv.metadata.files import load_map, save_map, write_durably
from memkv.metadata.http import Page, PlainHttpServer, Route, metrics_page, probe_page
from memkv.metadata.watch import MapWatcher, TicketGrant, WatchConfig, fetch_ticket
from memkv.node.admin import (
    AdminServer,
    AdminServicer,
    SpecKeeper,
    quotas_of,
    ticket_keys_of,
)
from memkv.node.children import WORKER_COMMAND, WorkerChild
from memkv.node.facts import NodeView, facts_of
from memkv.node.identity import IdentityKeeper, Sources
from memkv.node.messages import Identity, Quotas, Start, map_message
from memkv.node.metrics import NodeCollector
from memkv.node.node_config import NodeConfig
from memkv.shardmap import ShardMap, encode_map
from memkv_proto import node_admin_pb2 as pb

log = logging.getLogger("memkv.node")

MAP_FILE = "shardmap"
SPEC_FILE = "nodespec"
READY_FILE = "node.json"
LOCK_FILE = "node.lock"


class Supervisor:
    """Everything of one node but the data path."""

    def __init__(self, config: NodeConfig, clock: Clock | None = None) -> None:
        """Read what was kept; nothing runs before `start`."""
        self._config = config
        self._clock = clock or SystemClock()
        try:
            config.state_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot make the node's directory {config.state_dir}: {error.strerror}; choose "
                "another --dir, one that you can write to"
            ) from error
        self._specs = SpecKeeper(config.state_dir / SPEC_FILE)
        self._version = software_version()
        self._files = threading.Lock()
        self._telling = threading.Lock()
        self._lock = -1
        self._peer_fetches = 0
        self._admin: AdminServer | None = None
        self._http: PlainHttpServer | None = None
        self._watcher = self._make_watcher()
        self._children = [
            WorkerChild(
                position,
                partial(self._start_message, position),
                self._clock,
                config.worker_command or WORKER_COMMAND,
                self._write_ready_file,
            )
            for position in range(len(config.drives))
        ]
        self._identity = IdentityKeeper(
            Sources(
                lambda: ticket_keys_of(self._specs.spec),
                self._has_metadata,
                self._fetch_peer_ticket if config.metadata else None,
                config.ticket_keys,
            ),
            self._clock,
            self._on_identity,
        )

    @property
    def admin_endpoint(self) -> str:
        """HOST:PORT of NodeAdmin; "" before `start`."""
        return self._admin.endpoint if self._admin is not None else ""

    @property
    def http_port(self) -> int | None:
        """Port of /metrics; None where there is none."""
        return self._http.port if self._http is not None else None

    def start(self) -> None:
        """Listen and start the workers. ConfigError when directory or port are taken."""
        self._take_directory()
        caller_name = admin_name(self._config.pool) if self._config.tls is not None else ""
        servicer = AdminServicer(self._facts, self._specs, self._spec_applied, caller_name)
        self._admin = AdminServer(self._config, servicer)
        if self._config.http_port is not None:
            self._http = PlainHttpServer(
                self._config.http_host, self._config.http_port, self._routes()
            )
        self._identity.start()
        if self._watcher is not None:
            self._watcher.start()
        for child in self._children:
            child.start()
        self._write_ready_file()
        log.info("node %s: admin at %s", self._config.name, self.admin_endpoint)

    def _take_directory(self) -> None:
        """Own the state directory: two nodes would write over each other's map and addresses."""
        path = self._config.state_dir / LOCK_FILE
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            self._lock = -1
            raise ConfigError(
                f"another node runs in {self._config.state_dir}: stop it, or choose another --dir"
            ) from error

    def stop(self) -> None:
        """Stop the workers cleanly, all at once, then everything else."""
        threads = [threading.Thread(target=child.stop) for child in self._children]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._identity.stop()
        if self._watcher is not None:
            self._watcher.stop()
        if self._admin is not None:
            self._admin.stop()
        if self._http is not None:
            self._http.stop()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def view(self) -> NodeView:
        """Return what is known of the node now."""
        spec = self._specs.spec
        watcher = self._watcher
        return NodeView(
            [child.view for child in self._children],
            spec.state or pb.NODE_STATE_ACTIVE,
            spec.generation,
            spec.revision,
            watcher is not None and watcher.statistics().connected,
            watcher is not None and watcher.route is not None,
            self._identity.key_ids,
        )

    # --- maps --------------------------------------------------------------------------------

    def _make_watcher(self) -> MapWatcher | None:
        config = self._config
        if not config.metadata:
            return None
        return MapWatcher(
            WatchConfig(
                config.metadata,
                config.pool,
                f"node-{config.name}",
                config.metadata_tls,
                config.insecure,
            ),
            self._clock,
            self._on_map,
            kept=load_map(config.state_dir / MAP_FILE),
        )

    def _on_map(self, shard_map: ShardMap) -> None:
        message = map_message(encode_map(shard_map))
        for child in self._children:
            child.tell(message)
        try:
            save_map(self._config.state_dir / MAP_FILE, shard_map)
        except OSError as error:
            log.warning(
                "cannot keep the shard map (%s): after a restart without the metadata service "
                "this node serves nothing; free space in %s",
                error.strerror,
                self._config.state_dir,
            )

    # --- identity ----------------------------------------------------------------------------

    def _has_metadata(self) -> bool:
        # A node without one has nobody whose absence could be the reason.
        return self._watcher is None or self._watcher.statistics().connected

    def _fetch_peer_ticket(self) -> TicketGrant:
        config = self._config
        endpoint = config.metadata[self._peer_fetches % len(config.metadata)]
        self._peer_fetches += 1
        return fetch_ticket(endpoint, config.pool, "", peer=True, tls=config.metadata_tls)

    def _on_identity(self, identity: Identity) -> None:
        log.info(
            "node %s: %d ticket keys, metadata service %s, %s ticket for peers", self._config.name,
            len(identity.keys), "there" if identity.has_metadata else "away",
            "a" if identity.peer_ticket else "no",
        )  # fmt: skip
        for child in self._children:
            child.tell(identity)

    # --- workers -----------------------------------------------------------------------------

    def _start_message(self, position: int) -> Start:
        config, spec = self._config, self._specs.spec
        drive = config.drives[position]
        path, capacity_bytes = drive.path, drive.capacity_bytes
        for given in spec.drives:
            if given.worker == position:
                path, capacity_bytes = Path(given.path), given.capacity_bytes
        tls = config.payload_tls
        return Start(
            pool=config.pool,
            node=config.name,
            position=position,
            drive=str(path),
            capacity_bytes=capacity_bytes,
            memory_bytes=config.memory_bytes,
            huge_page_bytes=config.huge_page_bytes,
            rdma=config.serves_rdma,
            rdma_devices=config.rdma.devices,
            rdma_gid_index=config.rdma.gid_index,
            rdma_traffic_class=config.rdma.traffic_class,
            rdma_fabric=config.rdma.fabric.value,
            discard=config.discard,
            host=config.host,
            port=config.data_port + position if config.data_port else 0,
            slots=config.slots,
            lane_threads=config.lane_threads,
            state_dir=str(config.state_dir),
            needs_map=bool(config.metadata),
            quotas=quotas_of(spec, position),
            trusting=config.is_trusting,
            local_dir=str(config.local_dir.absolute()) if config.local_dir else "",
            tls_certificate=str(tls.certificate.absolute()) if tls else "",
            tls_key=str(tls.key.absolute()) if tls else "",
            tls_authority=str(tls.authority.absolute()) if tls else "",
        )

    # --- answers -----------------------------------------------------------------------------

    def _facts(self) -> pb.GetFactsResponse:
        return facts_of(self._config, self.view(), self._version)

    def _spec_applied(self) -> None:
        log.info("node %s: spec generation %d", self._config.name, self._specs.spec.generation)
        self._identity.poke()
        with self._telling:  # of two specs at once, the newer one is told last
            spec = self._specs.spec
            for position, child in enumerate(self._children):
                child.tell(Quotas(quotas_of(spec, position)))

    def _routes(self) -> dict[str, Route]:
        registry = CollectorRegistry()
        registry.register(NodeCollector(self.view))
        if self._config.tls is not None:
            registry.register(CertificateCollector(self._config.tls, "node"))
        return {
            "/metrics": lambda: metrics_page(registry),
            "/healthz": lambda: probe_page(True, "ok"),
            "/readyz": self._ready_page,
        }

    def _ready_page(self) -> Page:
        reason = self.view().readiness(needs_map=bool(self._config.metadata))
        return probe_page(not reason, reason or "ok")

    def _write_ready_file(self) -> None:
        """Tell on disk what listens where, for whoever started the node."""
        with self._files:  # looked at inside: who looked later also writes later
            try:
                write_durably(
                    self._config.state_dir / READY_FILE,
                    json.dumps(self._ready_document(), indent=1).encode(),
                )
            except OSError as error:
                log.warning("cannot write %s: %s", READY_FILE, error.strerror)

    def _ready_document(self) -> dict[str, object]:
        workers = [
            {
                "position": view.position,
                "phase": view.phase.name.lower(),
                "pid": view.pid,
                "uuid": view.report.uuid if view.report is not None else None,
                "port": view.report.port if view.report is not None else 0,
            }
            for view in (child.view for child in self._children)
        ]
        return {
            "name": self._config.name,
            "pool": self._config.pool,
            "pid": os.getpid(),
            "admin_endpoint": self.admin_endpoint,
            "http_port": self.http_port,
            "workers": workers,
        }


def run_node(
    config: NodeConfig, clock: Clock | None = None,
    started: Callable[[Supervisor], None] = lambda supervisor: None,
) -> None:  # fmt: skip
    """Run a node until SIGTERM or SIGINT; `started` is told when it listens. ConfigError when it
    cannot start."""
    run_until_signalled(lambda: Supervisor(config, clock), started)
