"""docs/store-format.md says what the code says: offsets, types, names, limits, tables, bytes."""

import re
from pathlib import Path

import pytest

from memkv import checksum, limits
from memkv.store import layout, recovery_table
from memkv.tenant import tenant_tag

DOCUMENT = (Path(__file__).resolve().parents[3] / "docs" / "store-format.md").read_text("utf-8")
TYPES = {"B": "u8", "H": "u16", "I": "u32", "Q": "u64"}
ENDS = ("magic", "format", "reserved")
STRUCTS = {
    "superblock": (layout._SUPERBLOCK, (*ENDS, "reserved", *layout.Superblock._fields)),
    "segment header": (
        layout._SEGMENT, (*ENDS, "segment", "device_uuid", *layout.SegmentHeader._fields[2:]),
    ),
    "record header": (
        layout._RECORD,
        ("magic", "format", "kind", "flags", "header_bytes", *layout.RecordHeader._fields[1:-1]),
    ),
    "tombstone": (layout.TOMBSTONE, ("block_id", "generation")),
    "list entry": (layout.ENTRY, (*layout.Entry._fields, "pad")),
    "trailer": (
        layout._TRAILER, (*ENDS, "segment", "device_uuid", *layout.Trailer._fields[2:]),
    ),
}  # fmt: skip


def rows(marker: str) -> list[list[str]]:
    """Return the cells of the table behind a marker, without its two head lines."""
    _, found, rest = DOCUMENT.partition(f"<!-- {marker} -->\n")
    assert found, f"no {marker!r} in the document"
    lines = rest.split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def fields(format_text: str) -> list[tuple[int, str]]:
    """Return (offset, type in words) of each field of a packed struct."""
    found, offset = [], 0
    for count, code in re.findall(r"(\d*)([a-zA-Z])", format_text.lstrip("<")):
        if code in "sx":
            found.append((offset, f"{count} bytes"))
            offset += int(count)
            continue
        size = int(TYPES[code][1:]) // 8
        for _ in range(int(count or 1)):
            found.append((offset, TYPES[code]))
            offset += size
    return found


@pytest.mark.parametrize("name", STRUCTS)
def test_a_table_is_the_struct(name: str) -> None:
    struct, names = STRUCTS[name]
    wanted = [
        (str(offset), kind, field)
        for (offset, kind), field in zip(fields(struct.format), names, strict=True)
    ]
    assert [tuple(row[:3]) for row in rows(f"struct: {name}")] == wanted


def test_every_struct_of_the_layout_has_a_table() -> None:
    known = {id(value) for value in vars(layout).values() if type(value).__name__ == "Struct"}
    assert {id(struct) for struct, _ in STRUCTS.values()} == known
    assert set(re.findall(r"<!-- struct: (.*) -->", DOCUMENT)) == set(STRUCTS)


def test_the_magic_numbers_are_right() -> None:
    for name, magic in (
        ("superblock", layout.SUPERBLOCK_MAGIC), ("segment header", layout.SEGMENT_MAGIC),
        ("record header", layout.RECORD_MAGIC), ("trailer", layout.TRAILER_MAGIC),
    ):  # fmt: skip
        assert rows(f"struct: {name}")[0][3] == f"`{magic.decode()}`"
        assert rows(f"struct: {name}")[1][3] == str(layout.FORMAT_VERSION)


def test_the_sizes_are_right() -> None:
    table = dict(re.findall(r"^\| ([A-Z_]+) \| (\d+) \|", DOCUMENT, re.MULTILINE))
    assert len(table) >= 8
    for name, value in table.items():
        assert getattr(layout, name, None) or getattr(limits, name)
        assert int(value) == getattr(layout, name, getattr(limits, name, None))


def cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| @")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_recovery_tables_are_those_of_the_code() -> None:
    assert rows("table: segments") + rows("table: records") == cells(recovery_table.__doc__ or "")


def test_the_worked_example_is_what_is_written() -> None:
    data, block_id, tag = b"hello world, twice a block", bytes(range(32)), tenant_tag("default")
    seal = checksum.seal(data, block_id, tag)
    header = layout.RecordHeader(
        layout.Kind.BLOCK, block_id, tag, 0, 3, (2 << 40) + 7, (1 << 32) + 3, 0x1122334455667788,
        limits.MIB + limits.SECTOR_BYTES, len(data), 1_700_000_060, 1, b"prefix01", b"session1",
        seal.root, seal.sums,
    )  # fmt: skip
    page = layout.aligned_buffer(limits.SECTOR_BYTES)
    layout.write_record_header(page, header)
    text = DOCUMENT.partition("<!-- bytes: record header -->")[2].split("```")[1]
    shown = bytes.fromhex("".join(line.split("|")[0] for line in text.splitlines()))
    assert shown == page[: len(shown)]
    assert len(shown) == layout._RECORD.size
    tail = DOCUMENT.rpartition("Then zeros")[2]
    assert f"`{bytes(page[layout.LIST_OFFSET :][:8]).hex(' ')}`" in tail
    assert f"`{bytes(page[layout.SUM_OFFSET :]).hex(' ')}`" in tail
    assert not any(page[len(shown) : layout.LIST_OFFSET])
