"""What a client keeps on disk for a start without the metadata service: the last map, the ticket.

Used only when the service does not answer. Both files are for the user alone (a ticket opens
sessions), are replaced as one step, and carry a digest: a damaged one counts as none. Nothing here
raises: a client without a cache works, it only cannot start alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path

from memkv.limits import MAP_BYTES_MAX, TICKET_BYTES_MAX
from memkv.metadata.watch import TicketGrant
from memkv.shardmap import MapInvalid, ShardMap, decode_map, encode_map

log = logging.getLogger("memkv.client")

TICKET_FILE_BYTES_MAX = 4 * TICKET_BYTES_MAX  # the ticket in hex, names and a digest
NAME_BYTES = 12


class KeptFiles:
    """Map and ticket of one pool, endpoint and tenant, in a folder that clients may share."""

    def __init__(self, folder: Path, endpoint: str, pool: str, tenant: str) -> None:
        """Nothing is read or written yet."""
        name = _digest(f"{endpoint}\0{pool}".encode())[: 2 * NAME_BYTES]
        owner = _digest(tenant.encode())[: 2 * NAME_BYTES]
        self._map = folder / f"{name}.map"
        self._ticket = folder / f"{name}-{owner}.ticket"
        self._complained = False

    def load_map(self) -> ShardMap | None:
        """Return the kept map; None where there is none that can be trusted."""
        try:
            return decode_map(_read(self._map, MAP_BYTES_MAX))
        except (OSError, MapInvalid):
            return None

    def save_map(self, shard_map: ShardMap) -> None:
        self._write(self._map, encode_map(shard_map))

    def load_ticket(self, now_s: int) -> TicketGrant | None:
        """Return the kept ticket; None where there is none, or it has expired."""
        try:
            line, _, digest = _read(self._ticket, TICKET_FILE_BYTES_MAX).partition(b"\n")
            fields = json.loads(line)
            if _digest(line) != digest.decode():
                return None
            grant = TicketGrant(
                bytes.fromhex(fields["ticket"]), str(fields["tenant"]),
                bytes.fromhex(fields["salt"]), int(fields["expires_s"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return grant if now_s < grant.expires_s else None

    def save_ticket(self, grant: TicketGrant) -> None:
        fields = {
            "ticket": grant.ticket.hex(), "tenant": grant.tenant,
            "salt": grant.tenant_salt.hex(), "expires_s": grant.expires_s,
        }
        line = json.dumps(fields).encode()
        self._write(self._ticket, line + b"\n" + _digest(line).encode())

    def _write(self, path: Path, data: bytes) -> None:
        # Clients share the folder: each has a name of its own until its file is whole.
        temporary = path.with_name(f"{path.name}.{os.getpid()}-{id(self):x}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(data)
            os.replace(temporary, path)
        except OSError as error:
            if not self._complained:
                self._complained = True
                log.warning(
                    "cannot keep the shard map in %s (%s), so a start without the metadata service"
                    " will miss: free space there, or set another MEMKV_CACHE_DIR",
                    path.parent, error.strerror,
                )


def _read(path: Path, bytes_max: int) -> bytes:
    with path.open("rb") as file:
        return file.read(bytes_max + 1)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
