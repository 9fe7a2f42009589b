"""What a store may answer, known without keeping a copy of any block.

The content of a block is a function of (tenant, key, put number), so whoever holds bytes can say
which put they are. The oracle remembers what was promised about each put: seen, durable, deleted,
expired, evicted.
"""

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from memkv import pattern

if TYPE_CHECKING:
    from typing_extensions import Buffer

Name = tuple[str, str]  # tenant, key


class Verdict(Enum):
    """What a returned block is."""

    OK = "ok"
    WRONG = "wrong bytes"
    """Of no put of this key by this tenant, or not all of it."""
    STALE = "stale after delete"
    """Of a put that was deleted, and the delete was acknowledged."""
    EXPIRED = "expired"
    """Of a put whose time is over."""


class DeleteState(Enum):
    """What is known of deletes after a put."""

    NONE = 0
    ASKED = 1
    ACKNOWLEDGED = 2


@dataclass(slots=True)
class KnownPut:
    """One put that may have reached the store."""

    number: int
    length: int
    expiry_s: int
    durable: bool = False
    deleted: DeleteState = DeleteState.NONE
    evicted: bool = False


def content_seed(name: Name, number: int) -> int:
    """Return the pattern seed of one put."""
    return pattern.seed_of(f"{name[0]}/{name[1]}", number)


class ContentOracle:
    """Promises about every (tenant, key)."""

    def __init__(self) -> None:
        self._puts: dict[Name, list[KnownPut]] = {}
        self._number = 0

    def begin_put(self, name: Name, length: int, expiry_s: int = 0) -> KnownPut:
        """Note a put that is about to be committed; fill its buffer with `content_seed`."""
        self._number += 1
        put = KnownPut(self._number, length, expiry_s)
        self._puts.setdefault(name, []).append(put)
        return put

    def withdraw(self, name: Name, put: KnownPut) -> None:
        """The store did not take the put: it was refused, or another was there first."""
        self._puts[name].remove(put)

    def delete_asked(self, name: Name) -> None:
        """From now on the key's puts may be gone."""
        for put in self._puts.get(name, ()):
            if put.deleted is DeleteState.NONE:
                put.deleted = DeleteState.ASKED

    def delete_acknowledged(self, name: Name) -> None:
        """From now on no put before the delete may be seen."""
        for put in self._puts.get(name, ()):
            if put.deleted is DeleteState.ASKED:
                put.deleted = DeleteState.ACKNOWLEDGED

    def evicted(self, name: Name) -> None:
        """The store said that it dropped the key."""
        for put in self._puts.get(name, ()):
            put.evicted = True

    def lost(self, name: Name) -> None:
        """The device ate the key: nothing is promised about its puts any more."""
        self.evicted(name)

    def present_is_durable(self, name: Name) -> None:
        """The store called a durable put of a key a no-op: what is there is durable."""
        live = [put for put in self._puts.get(name, ()) if put.deleted is DeleteState.NONE]
        if len(live) == 1 and not live[0].evicted:
            live[0].durable = True

    def judge(self, name: Name, data: "Buffer", now_s: int) -> Verdict:
        """Say what the bytes returned for a key are."""
        length = memoryview(data).nbytes
        for put in reversed(self._puts.get(name, [])):
            if put.length != length:
                continue
            if pattern.first_wrong_byte(data, content_seed(name, put.number)) is not None:
                continue
            if put.deleted is DeleteState.ACKNOWLEDGED:
                return Verdict.STALE
            if put.expiry_s and put.expiry_s <= now_s:
                return Verdict.EXPIRED
            return Verdict.OK
        return Verdict.WRONG

    def tenants_of(self, data: "Buffer") -> set[str]:
        """Return the tenants with a put that begins with these bytes."""
        return {
            name[0]
            for name, puts in self._puts.items()
            for put in puts
            if pattern.first_wrong_byte(data, content_seed(name, put.number)) is None
        }

    def required(self, now_s: int) -> list[Name]:
        """Return the keys that must hit: a durable put, not deleted, expired or evicted."""
        return [
            name
            for name, puts in self._puts.items()
            if any(
                put.durable
                and put.deleted is DeleteState.NONE
                and not put.evicted
                and not (put.expiry_s and put.expiry_s <= now_s)
                for put in puts
            )
        ]
