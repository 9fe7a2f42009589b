"""The files behind memory of this process: with them workers on this machine reach it directly.

vLLM hands its tiers a view of the host cache, not the file that it mapped, and where that file lies
differs between its versions. The kernel knows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

MAPS = Path("/proc/self/maps")


class Span(NamedTuple):
    """Memory, and the shared file that it maps from an offset on; `path` is empty without one."""

    address: int
    size_bytes: int
    path: str = ""
    offset: int = 0
    inode: int = 0

    @property
    def end(self) -> int:
        return self.address + self.size_bytes

    def open(self) -> int | None:
        """Return a descriptor of the file, which the caller closes; None where it has no name any
        more, or another file has it now."""
        if not self.path:
            return None
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        if os.fstat(fd).st_ino != self.inode:
            os.close(fd)
            return None
        return fd


def spans_of(address: int, size_bytes: int, maps: Iterable[str] | None = None) -> list[Span]:
    """Cut memory at the borders of the files behind it. `maps`: lines of `/proc/self/maps`."""
    if maps is None:
        maps = MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    end = address + size_bytes
    spans: list[Span] = []
    for line in maps:
        mapped = _parsed(line)
        begins = max(address, mapped.address)
        ends = min(end, mapped.end)
        if begins >= ends:
            continue
        offset = mapped.offset + begins - mapped.address if mapped.path else 0
        span = mapped._replace(address=begins, size_bytes=ends - begins, offset=offset)
        if spans and _continues(spans[-1], span):
            spans[-1] = spans[-1]._replace(size_bytes=span.end - spans[-1].address)
        else:
            spans.append(span)
    return spans


def _parsed(line: str) -> Span:
    """Read one line: addresses, rights, offset, device, inode, path. Private mappings are nobody
    else's to see, so they count as memory without a file."""
    addresses, rights, offset, _, inode, *path = line.split(maxsplit=5)
    begin, _, end = addresses.partition("-")
    address = int(begin, 16)
    size_bytes = int(end, 16) - address
    if rights[3] != "s" or not path:
        return Span(address, size_bytes)
    return Span(address, size_bytes, path[0], int(offset, 16), int(inode))


def _continues(before: Span, span: Span) -> bool:
    """The kernel lists one mapping in pieces where its advice differs."""
    same_file = (before.path, before.inode) == (span.path, span.inode)
    follows = not span.path or before.offset + before.size_bytes == span.offset
    return before.end == span.address and same_file and follows
