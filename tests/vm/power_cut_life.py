"""One life of a node that ends when the machine's power is cut. Runs in the virtual machine.

    python power_cut_life.py LIFE

First it reads every block of all lives before, as the host's lists name them, and says what it
found in `verdict-LIFE`. Then it puts durable blocks until the power is gone, and appends the name
of each to `begun` before and to `acknowledged` after: the host has both lists when the machine is
no more. A block's length and content follow from its name.
"""

import hashlib
import json
import os
import sys
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path

from memkv.limits import KIB, MIB
from memkv.pattern import block, first_wrong_byte, seed_of
from memkv.status import Status
from memkv.testing.guest_node import GuestNode, drive
from memkv.testing.namespaces import enter
from memkv.testing.wire_client import Block, Lane
from memkv.wire.items import Durability

OUT = Path(os.environ.get("OUT", "."))
PUTTERS = 3
LENGTHS = (1, 4 * KIB - 1, 4 * KIB, 70_000, 300_000, MIB + 1)
BATCH = 8


@dataclass
class Verdict:
    """What became of the blocks of earlier lives."""

    served: int = 0
    lost: list[str] = field(default_factory=list)
    """Acknowledged, and not served."""
    wrong: list[str] = field(default_factory=list)
    """Served with other bytes than were put."""
    unsettled_served: int = 0
    """Begun, never acknowledged, and there all the same."""


def id_of(name: str) -> bytes:
    """Return a digest, as ids are: stores tell blocks apart by the first half."""
    return hashlib.sha256(name.encode()).digest()


def length_of(name: str) -> int:
    return LENGTHS[seed_of(name) % len(LENGTHS)]


def names_in(file: str) -> list[str]:
    path = OUT / file
    return path.read_text().splitlines() if path.exists() else []


class Lists:
    """Appends to the host's files; a line is on the host when `note` returns."""

    def __init__(self) -> None:
        mode = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._files = {name: os.open(OUT / name, mode) for name in ("begun", "acknowledged")}

    def note(self, file: str, name: str) -> None:
        os.write(self._files[file], f"{name}\n".encode())


def judge(lane: Lane) -> Verdict:
    """Read all blocks that may be there."""
    verdict, begun, acknowledged = Verdict(), names_in("begun"), set(names_in("acknowledged"))
    for first in range(0, len(begun), BATCH):
        names = begun[first : first + BATCH]
        got = lane.get(b"".join(map(id_of, names)))
        for number, name in enumerate(names):
            item = got[number]
            if item.status is not Status.OK:
                if name in acknowledged:
                    verdict.lost.append(f"{name}: {item.status.name}")
            elif len(item.payload) != length_of(name) or (
                first_wrong_byte(item.payload, seed_of(name)) is not None
            ):
                verdict.wrong.append(name)
            elif name in acknowledged:
                verdict.served += 1
            else:
                verdict.unsettled_served += 1
    return verdict


def put_for_ever(lane: Lane, lists: Lists, prefix: str) -> None:
    number = 0
    while True:
        name = f"{prefix}-{number}"
        data = block(seed_of(name), length_of(name))
        lists.note("begun", name)
        [status] = lane.put([Block(id_of(name), data, Durability.DURABLE)], deadline_ms=60_000)
        if status is Status.OK:
            lists.note("acknowledged", name)
        number += 1


def main() -> None:
    """Judge, then put until the end."""
    life = sys.argv[1]
    node = GuestNode(drive())
    node.start()
    enter("client")
    client = node.client()
    verdict = judge(client.lane())
    written = OUT / "verdict"
    written.write_text(json.dumps(asdict(verdict)))
    written.rename(OUT / f"verdict-{life}")
    lists = Lists()
    putters = [
        threading.Thread(target=put_for_ever, args=(client.lane(), lists, f"{life}-{number}"))
        for number in range(PUTTERS)
    ]
    for putter in putters:
        putter.start()
    for putter in putters:
        putter.join()


if __name__ == "__main__":
    main()
