"""What one check of `memkv doctor` has to say."""

from dataclasses import dataclass

OK, WARNING, BROKEN = "ok", "warning", "broken"


@dataclass(frozen=True, slots=True)
class Check:
    """Outcome of one check. `fix` is empty when all is well; `details` are lines for whoever looks
    closer."""

    name: str
    state: str
    found: str
    fix: str = ""
    details: tuple[str, ...] = ()
