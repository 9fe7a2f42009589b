"""What a worker must remember about its slots across restarts, beside its store. Pure values.

The file is one line of JSON and one with its SHA-256, replaced as one step. A worker that finds
blocks on its drives but no such file cannot know what was deleted while it was away, and forgets
the blocks: so the file belongs on storage that lives as long as the drives.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from memkv.metadata.files import write_durably

FORMAT = 1
HISTORY_MAX = 1024  # maps; a worker that was away for longer cannot be told all deletes


@dataclass(frozen=True, slots=True)
class MoveMemory:
    """Everything about slots that outlives a process. Replaced, never changed."""

    lineage: bytes = b""
    """Of the maps that epochs below belong to; empty: there was none."""
    epoch: int = 0
    """The newest map all of whose slots were taken over, deletes included."""
    heard: Mapping[int, int] = field(default_factory=dict)
    """Slot -> the newest map under which this worker had heard of every delete of the slot; 0 in a
    new lineage. No entry: it holds nothing of the slot."""
    floors: Mapping[int, int] = field(default_factory=dict)
    """Slot -> generation of the store up to which its records are gone."""
    tenants: Mapping[bytes, tuple[int, int]] = field(default_factory=dict)
    """Tenant tag -> (its generation in the map, generation of the store up to which its records
    are gone)."""
    history: tuple[tuple[int, int], ...] = ()
    """(epoch of a map, a generation of the store from before that map was served), ascending."""
    opened: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """Slot on its way here -> (since_epoch of the move, generation of the store from before the
    first delete of the slot was accepted)."""

    def generation_at(self, epoch: int) -> int:
        """Return a generation from before any delete by a map newer than `epoch` was accepted."""
        return max((generation for at, generation in self.history if at <= epoch), default=0)

    def in_lineage(self, lineage: bytes) -> "MoveMemory":
        """Return what still holds when maps of another lineage come.

        What was up to date stays; nobody will ever tell what the rest missed, so its entries go
        (`plan` drops the blocks).
        """
        if lineage == self.lineage:
            return self
        kept = {slot: 0 for slot, epoch in self.heard.items() if epoch == self.epoch}
        tenants = {tag: (0, floor) for tag, (_, floor) in self.tenants.items()}
        return MoveMemory(lineage, 0, kept, self.floors, tenants)

    def serving(self, epoch: int, generation: int) -> "MoveMemory":
        """Return the memory of a worker that is about to serve by a map of this epoch."""
        if self.history and self.history[-1][0] >= epoch:
            return self
        history = (*self.history, (epoch, generation))
        return replace(self, history=history[-HISTORY_MAX:])

    def settled(
        self, slots: Iterable[int], epoch: int, opened: Mapping[int, tuple[int, int]]
    ) -> "MoveMemory":
        """Return it with all deletes of these slots heard, up to and under the map `epoch`.

        `opened`: of those among them that are on their way here.
        """
        heard = {**self.heard, **dict.fromkeys(slots, epoch)}
        return replace(self, heard=heard, opened={**self.opened, **opened})

    def emptied(self, floors: Mapping[int, int]) -> "MoveMemory":
        """Return it with nothing held of these slots."""
        heard = {slot: epoch for slot, epoch in self.heard.items() if slot not in floors}
        return replace(self, heard=heard, floors={**self.floors, **floors})

    def dropped_tenant(self, tag: bytes, generation: int, floor: int) -> "MoveMemory":
        """Return it with nothing held of a tenant before this generation of it."""
        return replace(self, tenants={**self.tenants, tag: (generation, floor)})

    def moving(self, moves: Mapping[int, int]) -> "MoveMemory":
        """Return it without what is known of moves but these (slot -> since_epoch)."""
        opened = {
            slot: entry for slot, entry in self.opened.items() if moves.get(slot) == entry[0]
        }
        return replace(self, opened=opened)

    @property
    def tenant_floors(self) -> dict[bytes, int]:
        """For `StoreConfig.tenant_floors`."""
        return {tag: floor for tag, (_, floor) in self.tenants.items()}


def encode_memory(memory: MoveMemory) -> bytes:
    """Return the file's bytes."""
    document = {
        "format": FORMAT,
        "lineage": memory.lineage.hex(),
        "epoch": memory.epoch,
        "heard": _runs(memory.heard),
        "floors": _runs(memory.floors),
        "tenants": [[tag.hex(), *numbers] for tag, numbers in sorted(memory.tenants.items())],
        "history": [list(pair) for pair in memory.history],
        "opened": [[slot, *numbers] for slot, numbers in sorted(memory.opened.items())],
    }
    line = json.dumps(document, separators=(",", ":")).encode("ascii")
    return line + b"\n" + sha256(line).hexdigest().encode("ascii") + b"\n"


def decode_memory(data: bytes) -> MoveMemory:
    """Return the memory. ValueError for anything but what `encode_memory` gave."""
    line, _, digest = data.partition(b"\n")
    if sha256(line).hexdigest().encode("ascii") != digest.strip():
        raise ValueError("its checksum does not match")
    document = json.loads(line)
    if document.get("format") != FORMAT:
        raise ValueError(f"its format is {document.get('format')}, this version reads {FORMAT}")
    try:
        return MoveMemory(
            bytes.fromhex(document["lineage"]),
            int(document["epoch"]),
            _from_runs(document["heard"]),
            _from_runs(document["floors"]),
            {bytes.fromhex(tag): (int(a), int(b)) for tag, a, b in document["tenants"]},
            tuple((int(epoch), int(generation)) for epoch, generation in document["history"]),
            {int(slot): (int(a), int(b)) for slot, a, b in document["opened"]},
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"it is not a worker's memory ({error})") from error


def load_memory(path: Path) -> MoveMemory | None:
    """Return what was kept; None where there is nothing, or nothing that can be trusted."""
    try:
        return decode_memory(path.read_bytes())
    except (OSError, ValueError):
        return None


def save_memory(path: Path, memory: MoveMemory) -> None:
    """Keep it; on disk when this returns. OSError when that is not possible."""
    write_durably(path, encode_memory(memory))


def _runs(numbers: Mapping[int, int]) -> list[list[int]]:
    """Return [first slot, last slot, number] for neighbours with one number: mostly few."""
    runs: list[list[int]] = []
    for slot, number in sorted(numbers.items()):
        if runs and runs[-1][1] == slot - 1 and runs[-1][2] == number:
            runs[-1][1] = slot
        else:
            runs.append([slot, slot, number])
    return runs


def _from_runs(runs: Iterable[Iterable[int]]) -> dict[int, int]:
    return {
        slot: int(number) for first, last, number in runs for slot in range(first, last + 1)
    }
