"""Sizes, durations and addresses as people write them."""

import pytest

from memkv.cli import units


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512), ("512KiB", 512 << 10), ("2 MiB", 2 << 20), ("2mib", 2 << 20),
        ("1.5GiB", 3 << 29), ("20GB", 20 * 10**9), ("1TB", 10**12), ("0", 0),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "2G", "2 G", "GiB", "1.1B", "2MiBB", "1e9", "²GiB"])
def test_unclear_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        units.parse_size(text)


def test_a_unit_of_one_letter_gets_a_hint() -> None:
    with pytest.raises(ValueError, match="write GiB or GB"):
        units.parse_size("2G")


@pytest.mark.parametrize(
    ("text", "seconds"), [("2", 2), ("500ms", 0.5), ("2s", 2), ("5m", 300), ("1h", 3600)]
)
def test_durations(text: str, seconds: float) -> None:
    assert units.parse_duration_s(text) == pytest.approx(seconds)


def test_durations_of_calls_and_of_blocks() -> None:
    assert units.parse_duration_ms("1.5s") == 1500
    assert units.parse_ttl_s("7d") == 7 * 86400
    for parse, text in ((units.parse_duration_ms, "1us"), (units.parse_ttl_s, "1.5s")):
        with pytest.raises(ValueError, match=text):
            parse(text)


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("127.0.0.1:7443", ("127.0.0.1", 7443)),
        ("[::1]:7443", ("::1", 7443)),
        ("memkv-metadata.default.svc:7443", ("memkv-metadata.default.svc", 7443)),
    ],
)
def test_endpoints(text: str, split: tuple[str, int]) -> None:
    assert units.split_endpoint(text) == split


@pytest.mark.parametrize(
    "text", ["", "localhost", ":7443", "host:", "host:port", "host:70000", "::1:7443", "[]:1"]
)
def test_bad_endpoints_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        units.split_endpoint(text)


def test_figures_for_people() -> None:
    assert units.format_bytes(0) == "0 B"
    assert units.format_bytes(512 << 10) == "512 KiB"
    assert units.format_bytes(3 << 29) == "1.5 GiB"
    assert units.format_us(85) == "85 µs"
    assert units.format_us(1300) == "1.3 ms"
    assert units.format_percent(1.0) == "100%"
    assert units.format_percent(0.99996) == "99.99%", "only all is 100%"
