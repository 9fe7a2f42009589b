"""Sizes, durations and addresses as people write them, and back. Pure.

Every parser raises ValueError with a sentence that shows a right value.
"""

import math
import re

_SIZES = {
    "": 1, "b": 1,
    "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
}  # fmt: skip
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", re.ASCII)
PORT_MAX = 65535


def parse_size(text: str) -> int:
    """Return bytes: `2GiB` and `2GB` differ by 7%, so `2G` is refused as unclear."""
    found = _QUANTITY.fullmatch(text)
    unit = found.group(2).lower() if found else ""
    if not found or unit not in _SIZES:
        letter = unit.upper() if unit in ("k", "m", "g", "t") else ""
        hint = f"; write {letter}iB or {letter}B" if letter else ""
        raise ValueError(f"{text!r} is not a size such as 512KiB, 2MiB, 20GiB or 20GB{hint}")
    size = float(found.group(1)) * _SIZES[unit]
    if size != int(size):
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(size)


def parse_duration_s(text: str) -> float:
    """Return seconds; a bare number is seconds."""
    found = _QUANTITY.fullmatch(text)
    unit = (found.group(2) or "s") if found else ""
    if not found or unit not in _SECONDS:
        raise ValueError(f"{text!r} is not a duration such as 500ms, 2s, 5m, 1h or 7d")
    return float(found.group(1)) * _SECONDS[unit]


def parse_duration_ms(text: str) -> int:
    """Return whole milliseconds, at least 1."""
    milliseconds = round(parse_duration_s(text) * 1000)
    if milliseconds < 1:
        raise ValueError(f"{text!r} is shorter than a millisecond")
    return milliseconds


def parse_ttl_s(text: str) -> int:
    """Return whole seconds, at least 1."""
    seconds = parse_duration_s(text)
    if seconds < 1 or seconds != int(seconds):
        raise ValueError(f"{text!r} is not a whole number of seconds, such as 90s, 5m, 1h or 7d")
    return int(seconds)


def parse_count(text: str) -> int:
    """Return a whole number >= 1."""
    if not re.fullmatch(r"\d{1,12}", text, re.ASCII) or int(text) < 1:
        raise ValueError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def parse_index(text: str) -> int:
    """Return a whole number >= 0."""
    if not re.fullmatch(r"\d{1,5}", text, re.ASCII):
        raise ValueError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def parse_port(text: str) -> int:
    """Return a port; 0 lets the system choose."""
    if not re.fullmatch(r"\d{1,5}", text, re.ASCII) or int(text) > PORT_MAX:
        raise ValueError(f"{text!r} is not a port: 0 (any free one) to {PORT_MAX}")
    return int(text)


def parse_flag(text: str) -> bool:
    """Return a truth value."""
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off", ""):
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def split_endpoint(text: str) -> tuple[str, int]:
    """Return (host, port) of `host:port` or `[v6]:port`."""
    host, colon, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: write an IPv6 address in brackets, as in [::1]:7443")
    if not colon or not host or not port:
        raise ValueError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:7443")
    return host, parse_port(port)


def parse_endpoint(text: str) -> str:
    """Return `HOST:PORT`, checked."""
    split_endpoint(text)
    return text.strip()


def parse_name(text: str) -> str:
    """Return a name that is not empty."""
    if not text.strip():
        raise ValueError("it is empty")
    return text.strip()


def format_bytes(size: float) -> str:
    """Return `512 KiB`, `1.5 GiB`: binary units, three digits at most."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{_short(value)} {unit}"
        value /= 1024
    return f"{_short(value)} TiB"


def format_duration(seconds: float) -> str:
    """Return a duration as `parse_duration_s` takes it: `500ms`, `2s`."""
    return f"{seconds:g}s" if seconds >= 1 else f"{seconds * 1000:g}ms"


def format_us(microseconds: float) -> str:
    """Return a latency: `85 µs`, `1.3 ms`, `2.1 s`."""
    if microseconds < 1000:
        return f"{_short(microseconds)} µs"
    if microseconds < 1_000_000:
        return f"{_short(microseconds / 1000)} ms"
    return f"{_short(microseconds / 1_000_000)} s"


def format_percent(fraction: float) -> str:
    """Return a share; 100% only when nothing is missing."""
    percent = math.floor(fraction * 10_000) / 100 if fraction < 1 else 100.0 * fraction
    return f"{percent:.2f}%".replace(".00%", "%")


def _short(value: float) -> str:
    if value >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.1f}"
