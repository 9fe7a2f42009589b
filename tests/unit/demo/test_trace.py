"""The trace of the package is complete, and files that are not traces are refused by line."""

import gzip
import json
from pathlib import Path

import pytest

from memkv.demo.trace import BLOCK_TOKENS, TraceError, TraceRequest, read_trace
from memkv.limits import TRACE_LINE_BYTES_MAX

GOOD = b'{"timestamp": 5, "input_length": 600, "output_length": 7, "hash_ids": [0, 3]}\n'
REQUEST = TraceRequest(timestamp_ms=5, input_tokens=600, output_tokens=7, blocks=(0, 3))


def write(folder: Path, content: bytes) -> Path:
    path = folder / "trace.jsonl"
    path.write_bytes(content)
    return path


def test_conversation_trace_is_the_published_one() -> None:
    requests = references = 0
    unique: set[int] = set()
    for request in read_trace():
        requests += 1
        references += len(request.blocks)
        unique.update(request.blocks)
        assert len(request.blocks) == -(-request.input_tokens // BLOCK_TOKENS)
    assert (requests, references, len(unique)) == (12_031, 288_500, 182_790)


def test_reading_stops_at_the_wanted_number_of_requests() -> None:
    first = list(read_trace(requests_max=3))
    assert [request.input_tokens for request in first] == [6758, 7322, 7236]
    assert list(read_trace(requests_max=0)) == []


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_file_may_be_plain_or_compressed_and_have_empty_lines(
    tmp_path: Path, compress: type[bytes]
) -> None:
    path = write(tmp_path, compress(GOOD + b"\n \n" + GOOD.rstrip()))
    assert list(read_trace(path)) == [REQUEST, REQUEST]


def changed(**fields: object) -> bytes:
    return json.dumps(json.loads(GOOD) | fields).encode()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param(b"{", "not a JSON object", id="cut"),
        pytest.param(b"\xff\xfe", "not a JSON object", id="binary"),
        pytest.param(b"[" * 100_000, "not a JSON object", id="deep"),
        pytest.param(b"[1]", "found list", id="not an object"),
        pytest.param(b"{}", "hash_ids", id="empty object"),
        pytest.param(changed(timestamp=-1), "timestamp .* found -1", id="negative time"),
        pytest.param(changed(timestamp=None), "timestamp .* found None", id="no time"),
        pytest.param(changed(input_length="x" * 99), "input_length .* 'x{39}$", id="text length"),
        pytest.param(changed(output_length=True), "output_length", id="boolean length"),
        pytest.param(changed(hash_ids=[1, 2.5]), "hash_ids", id="fraction as block"),
        pytest.param(changed(hash_ids={"a": 1}), "hash_ids", id="object as blocks"),
        pytest.param(b" " * (TRACE_LINE_BYTES_MAX + 1), "longer than", id="endless line"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = write(tmp_path, GOOD + line)
    requests = read_trace(path)
    assert next(requests) == REQUEST
    with pytest.raises(TraceError, match=rf"trace\.jsonl:2: .*{message}"):
        next(requests)


def test_a_cut_gzip_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, gzip.compress(GOOD * 1000)[:-20])
    with pytest.raises(TraceError, match="is the file complete"):
        list(read_trace(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no such file"):
        next(read_trace(tmp_path / "absent"))
