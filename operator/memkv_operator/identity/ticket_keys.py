"""Which key signs a pool's tickets and which keys nodes take, while one replaces the other. Pure.

| phase     | who signs    | who is taken          | ends                                          |
| --------- | ------------ | --------------------- | --------------------------------------------- |
| STEADY    | the current  | the current           | a year after the key was made, or when        |
|           |              |                       | somebody asks by memkv.io/rotate-ticket-key   |
| ANNOUNCED | the current  | it and the upcoming   | the grace after all nodes in service had said |
|           |              |                       | that they take both                           |
| RETIRING  | the next one | it and the former     | when the former's last tickets have ended     |
| REVOKED   | a new one    | it; all keys before   | the grace after all nodes in service had said |
|           |              | are refused           | that they take it and none of those           |

So while nobody revokes, no ticket in use is ever signed with a key that a node in service does not
take. memkv.io/revoke-ticket-key leads to REVOKED from any phase, at once. Where a phase ends by
time, it also wants to hear once more from all nodes. All of it is stored with the pool's authority:
whoever leads next goes on from there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from memkv.errors import ConfigError
from memkv.limits import TICKET_KEYS_MAX
from memkv.wire.signed import TicketKey, key_name, public_keys_from_pem
from memkv.wire.ticket import TICKET_GRACE_S, TICKET_LIFETIME_S
from memkv_operator.identity.authority import public_pem, public_ticket_key
from memkv_operator.plan.ticket_keys import KeyPhase

LIFE = timedelta(days=365)
"""Of a key that signs: the shortest of the one to three years of NIST SP 800-57, part 1, for keys
that sign. A key that leaked unnoticed is of use for so long, and a change is tried every year."""
OVERLAP = timedelta(seconds=TICKET_LIFETIME_S + TICKET_GRACE_S)
"""For so long after a key signed last are its tickets taken, outages included."""
REVOKED_MAX = 8  # files of nodes forgot older ones long ago
EVER = 1
"""When a revoked key ended, in seconds since 1970: before any ticket, whatever a node's clock."""
assert REVOKED_MAX + 3 <= TICKET_KEYS_MAX  # with the current, the upcoming and the former key

TICKET_KEY, MADE_AT, NEXT_KEY = "tickets.key", "tickets-made-at", "next-tickets.key"
FORMER_PUBLIC, REVOKED_PUBLIC = "former-tickets.pub", "revoked-tickets.pub"
GIVEN_AT = "tickets-given-at"
ROTATION_SERVED, REVOCATION_SERVED = "tickets-rotation-served", "tickets-revocation-served"


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody asks for, each once for each new text; empty: nothing."""

    rotation: str = ""
    revocation: str = ""


@dataclass(frozen=True, slots=True)
class TicketKeys:
    """Keys of a pool's tickets. Private ones in PEM; public ones as they are, 32 bytes each."""

    current: bytes
    """Private; signs."""
    made_at: datetime
    upcoming: bytes = b""
    """Private; signs next."""
    former: bytes = b""
    """Public; signed before."""
    revoked: tuple[bytes, ...] = ()
    """Public; refused whatever files say, while files may still name them."""
    given_at: datetime | None = None
    """When everyone had what this phase is about; None: not yet."""
    served: Asked = Asked()
    """The last requests that were answered."""

    @property
    def phase(self) -> KeyPhase:
        """How far a change is."""
        if self.revoked:
            return KeyPhase.REVOKED
        if self.upcoming:
            return KeyPhase.ANNOUNCED
        return KeyPhase.RETIRING if self.former else KeyPhase.STEADY

    @property
    def taken(self) -> tuple[bytes, ...]:
        """Public keys whose tickets are good; that of the key that signs is the first."""
        keys = [raw_public_key(self.current)]
        keys += [raw_public_key(self.upcoming)] if self.upcoming else []
        return (*keys, *([self.former] if self.former else []))

    @property
    def told(self) -> tuple[TicketKey, ...]:
        """What nodes are told: the end of a revoked key counts for files that still name it."""
        taken = [TicketKey(key) for key in self.taken]
        return (*taken, *(TicketKey(key, EVER) for key in self.revoked))

    @property
    def public_pem(self) -> bytes:
        """What files of nodes hold."""
        return b"".join(public_pem(key) for key in self.taken)


def step(
    keys: TicketKeys,
    now: datetime,
    asked: Asked,
    make_key: Callable[[], bytes],
    given: bool,
    grace: timedelta,
    overlap: timedelta = OVERLAP,
) -> TicketKeys:
    """Return what holds from now on: the same, or one phase further.

    `given`: whether Secrets of pods hold the keys of the present phase, and all nodes in service
    say that they go by them. `make_key` makes a private key.
    """
    if asked.revocation not in ("", keys.served.revocation):
        return _revoke(keys, now, asked, make_key())
    if keys.phase is KeyPhase.STEADY:
        if asked.rotation in ("", keys.served.rotation) and now - keys.made_at < LIFE:
            return keys
        served = replace(keys.served, rotation=asked.rotation)
        return replace(keys, upcoming=make_key(), given_at=None, served=served)
    if not given:
        return keys
    if keys.given_at is None:
        return replace(keys, given_at=now)
    if now < ends_at(keys, keys.given_at, grace, overlap):
        return keys
    if keys.phase is KeyPhase.ANNOUNCED:
        former = raw_public_key(keys.current)
        return TicketKeys(keys.upcoming, now, b"", former, served=keys.served)
    return replace(keys, former=b"", revoked=(), given_at=None)


def ends_at(
    keys: TicketKeys, given_at: datetime, grace: timedelta, overlap: timedelta = OVERLAP
) -> datetime:
    """Return when the present phase may end at the earliest. Kubelet takes a part of the grace to
    bring metadata pods a key; until then they sign with the one before."""
    return given_at + grace + (overlap if keys.phase is KeyPhase.RETIRING else timedelta(0))


def waiting_for(keys: TicketKeys, said: Mapping[str, frozenset[str]]) -> tuple[str, ...]:
    """Return the nodes that do not go by these keys, by name. `said`: ids of the keys that each
    node in service takes."""
    wanted = {id_of(key) for key in keys.taken}
    refused = {id_of(key) for key in keys.revoked}
    return tuple(sorted(name for name, ids in said.items() if not wanted <= ids or refused & ids))


def raw_public_key(private: bytes) -> bytes:
    """Return the public key of a private one, 32 bytes. ConfigError when it is damaged."""
    return public_keys_from_pem(public_ticket_key(private).decode("ascii"))[0].public_key


def id_of(public: bytes) -> str:
    """Return by which id nodes and people name a key."""
    return key_name(TicketKey(public).key_id)


def content_of_ticket_keys(keys: TicketKeys) -> dict[str, bytes]:
    """Return what to store, every field; those that are empty are to be taken away."""
    return {
        TICKET_KEY: keys.current,
        MADE_AT: keys.made_at.isoformat().encode(),
        NEXT_KEY: keys.upcoming,
        FORMER_PUBLIC: public_pem(keys.former) if keys.former else b"",
        REVOKED_PUBLIC: b"".join(public_pem(key) for key in keys.revoked),
        GIVEN_AT: keys.given_at.isoformat().encode() if keys.given_at is not None else b"",
        ROTATION_SERVED: keys.served.rotation.encode(),
        REVOCATION_SERVED: keys.served.revocation.encode(),
    }


def read_ticket_keys(content: Mapping[str, bytes], stored_at: datetime) -> TicketKeys:
    """Return what was stored. `stored_at`: when the Secret was made, and with it a key that is
    older than the field that says when. ConfigError when it is damaged."""
    if not content.get(TICKET_KEY):
        raise ConfigError(f"the pool's identity has no {TICKET_KEY}")
    upcoming = content.get(NEXT_KEY, b"")
    for private in filter(None, (content[TICKET_KEY], upcoming)):
        raw_public_key(private)
    former = _public_keys(content, FORMER_PUBLIC)
    return TicketKeys(
        content[TICKET_KEY],
        _time_of(content, MADE_AT) or stored_at,
        upcoming,
        former[0] if former else b"",
        _public_keys(content, REVOKED_PUBLIC),
        _time_of(content, GIVEN_AT),
        Asked(
            content.get(ROTATION_SERVED, b"").decode("utf-8", "replace"),
            content.get(REVOCATION_SERVED, b"").decode("utf-8", "replace"),
        ),
    )


def _revoke(keys: TicketKeys, now: datetime, asked: Asked, heir: bytes) -> TicketKeys:
    """Whoever read one key could read them all. A rotation that was asked for is answered, too."""
    revoked = (*keys.taken, *keys.revoked)[:REVOKED_MAX]
    return TicketKeys(heir, now, revoked=revoked, served=asked)


def _public_keys(content: Mapping[str, bytes], name: str) -> tuple[bytes, ...]:
    if not content.get(name):
        return ()
    try:
        keys = public_keys_from_pem(content[name].decode("ascii"))
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name} of the pool's identity is damaged ({error})") from error
    return tuple(key.public_key for key in keys)


def _time_of(content: Mapping[str, bytes], name: str) -> datetime | None:
    if not content.get(name):
        return None
    try:
        return datetime.fromisoformat(content[name].decode("ascii")).astimezone(UTC)
    except ValueError as error:
        raise ConfigError(f"{name} of the pool's identity is no time ({error})") from error
