"""Kubernetes quantities, as numbers and as whole bytes."""

import re
from decimal import Decimal

from memkv.metadata.kubernetes.json_values import FieldInvalid

_SUFFIXES: dict[str, Decimal] = {
    "": Decimal(1),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
    "m": Decimal("0.001"),
    "u": Decimal("1e-6"),
    "n": Decimal("1e-9"),
    **{f"{letter}i": Decimal(1024 ** (n + 1)) for n, letter in enumerate("KMGTPE")},
}
_PATTERN = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:[eE]([+-]?\d{1,2})|([numkKMGTPE]?i?))")


def number_of(quantity: int | str, place: str = "quantity") -> Decimal:
    """Return a quantity as the number that it is. FieldInvalid for anything else."""
    if isinstance(quantity, int):
        return Decimal(quantity)
    found = _PATTERN.fullmatch(quantity)
    suffix = found.group(3) or "" if found else "?"
    if found is None or suffix not in _SUFFIXES:
        raise FieldInvalid(f"{place} is {quantity!r}: write a quantity such as 64Gi")
    number = Decimal(found.group(1)) * _SUFFIXES[suffix]
    if found.group(2):
        number *= Decimal(10) ** int(found.group(2))
    return number


def bytes_of(quantity: int | str, place: str = "quantity") -> int:
    """Return a quantity as bytes, rounded up. FieldInvalid for anything else."""
    return int(number_of(quantity, place).to_integral_value(rounding="ROUND_CEILING"))


def format_bytes(count: int) -> str:
    """Return bytes as the shortest exact quantity with a binary suffix."""
    for power in range(6, 0, -1):
        unit: int = 1024**power
        if count and count % unit == 0:
            return f"{count // unit}{'KMGTPE'[power - 1]}i"
    return str(count)


def format_bytes_roughly(count: int) -> str:
    """Return bytes for people, in Gi or Mi with one decimal at most."""
    for unit, suffix in ((1024**4, "Ti"), (1024**3, "Gi"), (1024**2, "Mi")):
        if count >= unit:
            return f"{round(count / unit, 1):g}{suffix}"
    return str(count)
