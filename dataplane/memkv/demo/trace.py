"""Request traces: which blocks each request of an inference service asked for, in order.

The format is the one released with Mooncake's FAST '25 paper; data/README.md describes it and the
trace that is part of the package. A file is read line by line, so its size does not matter.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import BinaryIO, cast

from memkv.errors import ConfigError
from memkv.limits import TRACE_LINE_BYTES_MAX

BLOCK_TOKENS = 512
CONVERSATION_TRACE = "conversation_trace.jsonl.gz"
GZIP_MAGIC = b"\x1f\x8b"


class TraceError(ConfigError):
    """A trace file cannot be read. The message names the file, the line and what was expected."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace.

    `blocks` names the blocks of its prompt from the start: equal numbers are equal prefixes up to
    and including that block. The last one may be partly filled.
    """

    timestamp_ms: int
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]


def read_trace(path: Path | None = None, requests_max: int | None = None) -> Iterator[TraceRequest]:
    """Yield the first `requests_max` requests (None: all) of a .jsonl or .jsonl.gz file.

    Without a path it is the conversation trace of the package. Empty lines are skipped.

    Raises TraceError at the first line that is not a request, and when the file cannot be read.
    The file is closed when the iterator ends or is closed.
    """
    with ExitStack() as stack:
        if path is None:
            resource = files(__package__) / "data" / CONVERSATION_TRACE
            path = stack.enter_context(as_file(resource))
        try:
            lines = stack.enter_context(open_lines(path))
            yield from parse_lines(lines, path, requests_max)
        except FileNotFoundError as error:
            raise TraceError(f"{path}: no such file") from error
        except (OSError, EOFError, zlib.error) as error:
            raise TraceError(f"{path}: cannot be read ({error}); is the file complete?") from error


def open_lines(path: Path) -> BinaryIO:
    """Open for reading; what begins like gzip is decompressed, whatever its name is."""
    file = path.open("rb")
    try:
        compressed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        file.seek(0)
    except BaseException:
        file.close()
        raise
    if not compressed:
        return file
    file.close()
    return cast(BinaryIO, gzip.open(path, "rb"))


def parse_lines(lines: BinaryIO, path: Path, requests_max: int | None) -> Iterator[TraceRequest]:
    """Parse lines of bounded length; `path` is only for messages."""
    number = count = 0
    while requests_max is None or count < requests_max:
        line = lines.readline(TRACE_LINE_BYTES_MAX + 1)
        number += 1
        if not line:
            return
        if len(line) > TRACE_LINE_BYTES_MAX:
            raise TraceError(f"{path}:{number}: longer than {TRACE_LINE_BYTES_MAX} bytes")
        if line.strip():
            yield parse_request(line, f"{path}:{number}")
            count += 1


def parse_request(line: bytes, place: str) -> TraceRequest:
    """Parse one line; `place` is where it stands, for messages."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{place}: not a JSON object: {error}") from error
    if not isinstance(fields, dict):
        raise TraceError(f"{place}: a JSON object is expected, found {type(fields).__name__}")
    blocks = fields.get("hash_ids")
    if not isinstance(blocks, list) or not all(is_count(block) for block in blocks):
        raise TraceError(f"{place}: hash_ids must be a list of whole numbers >= 0")
    return TraceRequest(
        timestamp_ms=count_of(fields, "timestamp", place),
        input_tokens=count_of(fields, "input_length", place),
        output_tokens=count_of(fields, "output_length", place),
        blocks=tuple(blocks),
    )


def count_of(fields: dict[str, object], name: str, place: str) -> int:
    value = fields.get(name)
    if not is_count(value):
        raise TraceError(f"{place}: {name} must be a whole number >= 0, found {value!r:.40}")
    return cast(int, value)


def is_count(value: object) -> bool:
    return type(value) is int and value >= 0  # bool is an int too, but not a count
