"""Objects as blocks: one, or several where they are longer than a block."""

from dataclasses import replace

import pytest

from memkv.integrations.keys import Namespace
from memkv.integrations.parts import ObjectKind

NAMESPACE = Namespace("llama", "", "bfloat16", "K2.L4.T.H8.D64", 256, "tests")


def kind(payload_bytes: int, part_bytes_max: int = 100) -> ObjectKind:
    return ObjectKind(NAMESPACE, payload_bytes, shape=(2, 4), part_bytes_max=part_bytes_max)


def test_an_object_that_fits_is_one_block_of_its_namespace() -> None:
    (part,) = kind(100).parts(b"hash", [(1000, 60), (5000, 40)])
    assert part.format.namespace_digest == NAMESPACE.digest
    assert (part.format.payload_bytes, part.format.shape) == (100, (2, 4))
    assert part.pieces == ((1000, 60), (5000, 40))
    assert kind(100).keys(b"hash") == [part.key]


def test_a_longer_one_is_cut_through_its_pieces() -> None:
    parts = kind(250).parts(b"hash", [(1000, 130), (5000, 120)])
    assert [part.pieces for part in parts] == [
        ((1000, 100),), ((1100, 30), (5000, 70)), ((5070, 50),),
    ]  # fmt: skip
    assert [part.format.payload_bytes for part in parts] == [100, 100, 50]
    assert len({part.key for part in parts}) == 3
    assert kind(250).keys(b"hash") == [part.key for part in parts]


@pytest.mark.parametrize(
    "other", [kind(249, 100), kind(251, 100), kind(350, 100), kind(250, 99)], ids=repr
)
def test_parts_of_another_cut_never_complete_an_object(other: ObjectKind) -> None:
    assert not {*kind(250).keys(b"hash")} & {*other.keys(b"hash")}


def test_what_a_kind_says_is_in_the_header() -> None:
    said = replace(kind(50), group=3, tokens=12, dtype="uint8", coding="fp8", details=b"x")
    (part,) = said.parts(b"hash", [(0, 50)])
    form = part.format
    assert (form.group, form.tokens, form.dtype, form.coding, form.details) == (
        3, 12, "uint8", "fp8", b"x",
    )  # fmt: skip
