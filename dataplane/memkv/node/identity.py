"""What a node's workers judge tickets by, and the ticket by which they know one another.

The supervisor gathers it (keys from the NodeSpec and from a file, whether there is a metadata
service, a ticket for moves from it) and tells the workers whenever something changed. Nothing here
is needed while a session lives: keys and tickets decide about new ones only.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from memkv import limits
from memkv.clock import Clock
from memkv.errors import ConfigError, MemKVError
from memkv.metadata.watch import TicketGrant
from memkv.node.messages import Identity
from memkv.node.moves.tickets import GivenPeerTickets
from memkv.wire.signed import (
    PoolVerifier,
    TicketKey,
    checked_keys,
    key_name,
    public_keys_from_pem,
)
from memkv.wire.ticket import TicketRefused, parse_ticket

log = logging.getLogger("memkv.node")

LOOK_INTERVAL_S = 1.0  # between looks at the key file and the stream: a rotation takes hours
RETRY_S = 5  # after the metadata service refused or did not answer


def read_ticket_keys(path: Path) -> tuple[TicketKey, ...]:
    """Return the public keys of a PEM file. ConfigError naming the file."""
    try:
        return public_keys_from_pem(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the ticket keys {path}: {error.strerror}") from error
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error


@dataclass(frozen=True, slots=True)
class Sources:
    """Where an identity comes from."""

    spec_keys: Callable[[], tuple[TicketKey, ...]]
    """Keys of the NodeSpec in force."""
    has_metadata: Callable[[], bool]
    """Whether tickets can be renewed: False gives expired ones their grace."""
    fetch: Callable[[], TicketGrant] | None
    """Gets a ticket for moves; MemKVError when it cannot. None: there is nobody to ask."""
    key_file: Path | None = None


class IdentityKeeper:
    """Keeps the identity of a node's workers up to date."""

    def __init__(
        self, sources: Sources, clock: Clock, changed: Callable[[Identity], None]
    ) -> None:
        """Read the key file: ConfigError when it is unfit. `changed` is called in the keeper's
        thread, and first in `start`."""
        self._sources = sources
        self._clock = clock
        self._changed = changed
        self._file_keys: tuple[TicketKey, ...] = ()
        self._read_file(first=True)
        self._peer_ticket = b""
        self._fetch_at_s = 0
        self._retry_at_s = 0
        self._told: Identity | None = None
        self._taken: tuple[TicketKey, ...] = ()
        self._problem = ""
        self._stopping = threading.Event()
        self._poked = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memkv-identity", daemon=True)

    def start(self) -> None:
        """Tell what is known, and go on looking."""
        self._tell()
        self._thread.start()

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Ids of the keys that workers were told to take, without those that have ended."""
        return tuple(key_name(key.key_id) for key in self._taken if self._is_good(key))

    def poke(self) -> None:
        """Look now: something changed."""
        self._poked.set()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._poked.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._read_file()
            self._fetch_when_due()
            self._tell()
            self._poked.wait(LOOK_INTERVAL_S)
            self._poked.clear()

    def _read_file(self, *, first: bool = False) -> None:
        path = self._sources.key_file
        if path is None:
            return
        try:
            self._file_keys = read_ticket_keys(path)
        except ConfigError as error:
            if first:
                raise
            self._complain(f"going on with the ticket keys before: {error}")

    def _keys(self) -> tuple[TicketKey, ...]:
        try:
            return checked_keys((*self._sources.spec_keys(), *self._file_keys))
        except ConfigError as error:
            self._complain(str(error))
            return self._file_keys

    def _fetch_when_due(self) -> None:
        now_s = self._clock.monotonic_ns() // 1_000_000_000
        if self._sources.fetch is None or not self._keys():
            return
        if now_s < self._fetch_at_s and (self._peers_take_ticket() or now_s < self._retry_at_s):
            return
        self._retry_at_s = now_s + RETRY_S
        try:
            grant = self._sources.fetch()
        except MemKVError as error:
            self._fetch_at_s = now_s + RETRY_S
            self._complain(f"no ticket for moving slots: {error}")
            return
        self._peer_ticket = grant.ticket
        life_s = max(0, grant.expires_s - self._clock.wall_s())
        self._fetch_at_s = now_s + max(life_s // 4, limits.TICKET_RENEWAL_S_MIN)
        self._problem = ""

    def _peers_take_ticket(self) -> bool:
        """Return whether the ticket for moves is signed with a key that counts: other nodes go by
        the same keys, and refuse one whose key was revoked."""
        try:
            key_id = parse_ticket(self._peer_ticket).key_id
        except TicketRefused:
            return True  # of a newer version, perhaps: nodes that take it know
        return any(key.key_id == key_id and self._is_good(key) for key in self._keys())

    def _is_good(self, key: TicketKey) -> bool:
        return key.not_after_s is None or self._clock.wall_s() < key.not_after_s

    def _tell(self) -> None:
        taken = self._keys()
        keys = tuple((key.public_key.hex(), key.not_after_s) for key in taken)
        now = Identity(keys, self._sources.has_metadata(), self._peer_ticket.hex())
        if now != self._told:
            self._told = now
            self._changed(now)
        self._taken = taken  # said of workers only after they were told

    def _complain(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            log.warning("%s", problem)


class WorkerIdentity:
    """The worker's side: its verifier, and its ticket for other workers. Thread-safe."""

    def __init__(self, *, trusting: bool) -> None:
        self.verifier = PoolVerifier(trusting=trusting)
        self.peer_tickets = GivenPeerTickets()

    def take(self, identity: Identity) -> None:
        """Go by what the supervisor said. ConfigError for keys that are none."""
        self.verifier.take_keys(
            TicketKey(bytes.fromhex(key), not_after_s) for key, not_after_s in identity.keys
        )
        self.verifier.take_grace(identity.has_metadata)
        self.peer_tickets.take(bytes.fromhex(identity.peer_ticket))
