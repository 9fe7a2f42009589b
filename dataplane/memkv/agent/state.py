"""What an agent keeps over restarts: its last spec, which drives are in use, what was wiped."""

import fcntl
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from google.protobuf.message import DecodeError

from memkv.agent.decisions import Assigned, Grant, Wanted
from memkv.errors import ConfigError
from memkv.metadata.admin_port import is_next
from memkv.metadata.files import write_durably
from memkv_proto import agent_admin_pb2 as pb

SPEC_FILE, GRANTS_FILE, WIPED_FILE, LOCK_FILE = "agentspec", "grants.json", "wiped.json", "lock"
RESOURCE = re.compile(r"drives\.memkv\.io/[a-z0-9]([a-z0-9-]{0,52}[a-z0-9])?")
FINGERPRINT = re.compile(r"[^/ ]+:[0-9]+:sha256-[a-f0-9]{4,64}")
DRIVES_MAX = 64


def check_spec(spec: pb.AgentSpec) -> None:
    """ConfigError for a spec that contradicts itself: nothing of it may be carried out."""
    owners: dict[str, str] = {}
    resources: set[str] = set()
    for assignment in spec.assignments:
        name = assignment.resource
        if not RESOURCE.fullmatch(name):
            raise ConfigError(f"resource {name!r} is not drives.memkv.io/<group>-<8 hex digits>")
        if name in resources:
            raise ConfigError(f"resource {name} is assigned twice")
        resources.add(name)
        if not assignment.pool_uid:
            raise ConfigError(f"{name} is of no pool: pool_uid is empty")
        positions = sorted(drive.position for drive in assignment.drives)
        if positions != list(range(len(positions))) or not 0 < len(positions) <= DRIVES_MAX:
            raise ConfigError(f"positions of the drives of {name} are {positions}, not 0, 1, ...")
        for drive in assignment.drives:
            if not FINGERPRINT.fullmatch(drive.fingerprint) or not drive.id:
                raise ConfigError(f"{name}: drive {drive.id!r} has no id or no fingerprint")
            if drive.id in owners:
                raise ConfigError(f"drive {drive.id} is assigned to {owners[drive.id]} and {name}")
            owners[drive.id] = name
    for fingerprint in spec.wipes:
        if not FINGERPRINT.fullmatch(fingerprint):
            raise ConfigError(f"{fingerprint!r}, which shall be wiped, is no fingerprint")
        disk_id = fingerprint.rsplit(":", 2)[0]
        if disk_id in owners:
            raise ConfigError(f"drive {disk_id} shall be wiped, and {owners[disk_id]} has it")


def assignments_of(spec: pb.AgentSpec) -> tuple[Assigned, ...]:
    """Return the assignments of a spec as values."""
    return tuple(
        Assigned(
            assignment.pool_uid,
            assignment.resource,
            tuple(
                Wanted(drive.id, drive.fingerprint, drive.position, drive.erase)
                for drive in assignment.drives
            ),
        )
        for assignment in spec.assignments
    )


class AgentState:
    """The state on disk. One agent a folder; callers take turns."""

    def __init__(self, folder: Path) -> None:
        """Take the folder and read it. ConfigError when another agent has it, or for damage."""
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise ConfigError(
                f"another agent runs in {folder}: stop it, a node has one, or choose another --dir"
            ) from error
        except OSError as error:
            raise ConfigError(f"cannot use {folder}: {error.strerror}; choose another --dir") from (
                error
            )
        try:
            self.spec = self._read_spec()
            self.grants: Mapping[str, Grant] = self._read_grants()
            self.wiped = self._read_wiped()
        except ConfigError:
            self.release()
            raise

    def apply(self, spec: pb.AgentSpec) -> None:
        """Keep a spec; on disk when this returns. ConfigError for a contradiction, ValueError for
        an older one, OSError."""
        check_spec(spec)
        if not is_next(spec, self.spec):
            return
        write_durably(self._folder / SPEC_FILE, spec.SerializeToString(deterministic=True))
        kept = pb.AgentSpec()
        kept.CopyFrom(spec)
        self.spec = kept
        self._keep_wiped(self.wiped & set(spec.wipes))

    def keep_grants(self, grants: Mapping[str, Grant]) -> None:
        """Keep which drives are in use; on disk when this returns. OSError."""
        if grants != self.grants:
            text = json.dumps({disk: asdict(grant) for disk, grant in grants.items()}, indent=1)
            write_durably(self._folder / GRANTS_FILE, text.encode("utf-8"))
            self.grants = dict(grants)

    def note_wiped(self, fingerprint: str) -> None:
        """Keep that a store was wiped. OSError."""
        self._keep_wiped(self.wiped | {fingerprint})

    def release(self) -> None:
        """Let another agent have the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _keep_wiped(self, wiped: frozenset[str]) -> None:
        if wiped != self.wiped:
            write_durably(self._folder / WIPED_FILE, json.dumps(sorted(wiped)).encode("utf-8"))
            self.wiped = wiped

    def _read_spec(self) -> pb.AgentSpec:
        spec = pb.AgentSpec()
        try:
            spec.ParseFromString((self._folder / SPEC_FILE).read_bytes())
        except FileNotFoundError:
            pass  # a new agent: nothing was ever applied
        except DecodeError as error:
            raise self._damaged(SPEC_FILE) from error
        return spec

    def _read_grants(self) -> dict[str, Grant]:
        try:
            found: dict[str, dict[str, str]] = json.loads(self._read(GRANTS_FILE) or "{}")
            return {disk: Grant(**fields) for disk, fields in found.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise self._damaged(GRANTS_FILE) from error

    def _read_wiped(self) -> frozenset[str]:
        try:
            return frozenset(json.loads(self._read(WIPED_FILE) or "[]"))
        except (TypeError, ValueError) as error:
            raise self._damaged(WIPED_FILE) from error

    def _read(self, name: str) -> str:
        try:
            return (self._folder / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    def _damaged(self, name: str) -> ConfigError:
        return ConfigError(
            f"{self._folder / name} is damaged: remove it, and start the agent again; the operator"
            " applies its spec anew"
        )
