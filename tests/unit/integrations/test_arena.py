"""Memory for headers: who shares a page, and who must not."""

from collections.abc import Iterator

import pytest

from memkv._hotpath import memory_at
from memkv.errors import CallerError, RetryLater
from memkv.integrations.arena import Arena, HeaderPages
from memkv.integrations.blocks import BlockFormat
from memkv.integrations.keys import Namespace
from memkv.limits import BLOCK_HEADER_BYTES, HEADER_FORMATS_MAX
from memkv.local import files

NAMESPACE = Namespace("llama", "", "bfloat16", "L1.T.D4", 16, "sha256/0")


class FakeClient:
    def __init__(self) -> None:
        self.regions: dict[int, int] = {}

    def register_buffer(
        self, ptr: int, size: int, *, fd: int | None = None, fd_offset: int = 0
    ) -> int:
        assert fd is not None
        assert fd_offset == 0
        assert files.may_map(fd)
        self.regions[ptr] = size
        return 0

    def unregister_buffer(self, ptr: int) -> int:
        del self.regions[ptr]
        return 0


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
def pages(client: FakeClient) -> Iterator[HeaderPages]:
    pages = HeaderPages(client, 3)
    yield pages
    pages.close()
    assert not client.regions


def block_format(payload_bytes: int) -> BlockFormat:
    return BlockFormat.of(NAMESPACE, payload_bytes)


def test_an_arena_is_registered_and_given_back(client: FakeClient) -> None:
    arena = Arena(client, 8192)
    assert client.regions == {arena.address: 8192}
    assert arena.address % 4096 == 0
    arena.view[8191] = 7
    assert memory_at(arena.address, 8192)[8191] == 7
    arena.close()
    assert not client.regions


def test_puts_of_one_format_share_a_page_that_holds_its_header(pages: HeaderPages) -> None:
    address = pages.of_put(block_format(128))
    assert pages.of_put(block_format(128)) == address
    assert pages.of_put(block_format(256)) != address
    assert address % BLOCK_HEADER_BYTES == 0
    assert bytes(memory_at(address, BLOCK_HEADER_BYTES)) == block_format(128).header


def test_more_formats_than_there_is_room_for_are_refused(pages: HeaderPages) -> None:
    addresses = {pages.of_put(block_format(1 + n)) for n in range(HEADER_FORMATS_MAX)}
    assert len(addresses) == HEADER_FORMATS_MAX
    with pytest.raises(RetryLater, match="formats"):
        pages.of_put(block_format(HEADER_FORMATS_MAX + 1))
    assert pages.of_put(block_format(1)) in addresses


def test_gets_have_pages_of_their_own_until_they_give_them_back(
    client: FakeClient, pages: HeaderPages
) -> None:
    first = pages.take(2)
    assert first is not None
    assert pages.take(2) is None
    second = pages.take(1)
    assert second is not None
    put = pages.of_put(block_format(1))
    assert len({*first, *second, put}) == 4
    (region, size_bytes), = client.regions.items()
    assert all(region <= page <= region + size_bytes - BLOCK_HEADER_BYTES
               for page in (*first, *second))
    pages.give_back(first)
    assert pages.take(3) is None
    again = pages.take(2)
    assert again is not None
    assert set(again) == set(first)


def test_a_page_is_seen_where_a_get_wrote_it(pages: HeaderPages) -> None:
    (address,) = pages.take(1) or []
    memory_at(address, BLOCK_HEADER_BYTES)[:] = block_format(9).header
    assert pages.view(address) == block_format(9).header


def test_no_pages_are_no_arena(client: FakeClient) -> None:
    with pytest.raises(CallerError, match="at least one"):
        HeaderPages(client, 0)
