"""Callers by bearer token: a cache between them and whoever can tell what a token is worth.

What is cached for how long (NEGATIVE_S, POSITIVE_S) bounds how long a token that was taken back
still passes. While the reviewer is away, a token that passed before passes until its own end:
clients of a pool must not stop because the API server did. A token that could not pass anyway (no
token of a ServiceAccount, of another audience, ended) is refused without asking.

Whoever floods with invented tokens takes nothing from others: refusals are remembered beside the
tokens that passed, one address has few reviews at once, and tokens that passed before are reviewed
again whatever strangers do.
"""

import asyncio
import base64
import binascii
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from memkv.clock import Clock
from memkv.errors import ConfigError, RetryLater
from memkv.metadata.callers import Caller, Forbidden, Presented, Unauthenticated
from memkv.metadata.certificates import TOKEN_BYTES_MAX
from memkv.metadata.tenants import TenantMap
from memkv.wire.ticket import Rights

AUDIENCE = "memkv-metadata"
POSITIVE_S = 60  # kubernetes' own default for a webhook that authorizes is 300
NEGATIVE_S = 10  # a right that was just granted is seen soon, a client that hammers costs little
CACHED_MAX = 20_000  # callers of the largest pools; 100 bytes each
REFUSED_MAX = 4_096  # refusals last NEGATIVE_S: more of them are a flood, and worth no memory
REVIEWS_MAX = 32  # at once: a flood of tokens is not passed on to the API server
REVIEWS_PER_ADDRESS_MAX = 4  # of them: engines of one node start together, and each asks once

_PREFIX = "system:serviceaccount:"


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says of itself; true only once a reviewer said that the token is good."""

    audiences: tuple[str, ...]
    expires_s: int


def claims_of(token: str, audience: str = AUDIENCE) -> Claims:
    """Read a JSON Web Token without judging it. Unauthenticated for anything else."""
    parts = token.split(".")
    try:
        if len(parts) != 3 or len(token) > TOKEN_BYTES_MAX:
            raise ValueError("three parts are expected")
        body = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        audiences, expires_s = body["aud"], int(body["exp"])
        if isinstance(audiences, str):
            audiences = [audiences]
        return Claims(tuple(str(name) for name in audiences), expires_s)
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise Unauthenticated(
            "the token is none of a ServiceAccount: mount a projected one with audience "
            f"{audience} and say where by token_file"
        ) from error


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """Whom a token proves."""

    namespace: str
    name: str

    @property
    def user(self) -> str:
        """As Kubernetes writes it."""
        return f"{_PREFIX}{self.namespace}:{self.name}"

    @classmethod
    def of_user(cls, user: str) -> "ServiceAccount":
        """Parse what Kubernetes writes. Forbidden for other kinds of user."""
        namespace, colon, name = user.removeprefix(_PREFIX).partition(":")
        if not user.startswith(_PREFIX) or not colon or not namespace or not name or ":" in name:
            raise Forbidden(f"{user!r} is no ServiceAccount: only those use a pool")
        return cls(namespace, name)


class Reviewer(Protocol):
    """Whoever knows what a token is worth. Two questions, so that each has its own refusal."""

    async def account(self, token: str) -> ServiceAccount:
        """Return whose token it is. Unauthenticated, Forbidden, or RetryLater when it is away."""

    async def check_may_connect(self, account: ServiceAccount) -> None:
        """Raise Forbidden when the account may not use the pool, RetryLater when it is away."""


@dataclass(slots=True)
class _Verdict:
    caller: Caller | None
    error: Unauthenticated | Forbidden | RetryLater | None
    fresh_until_ns: int


class TokenCallers:
    """Authenticator by token. For one event loop."""

    def __init__(
        self,
        reviewer: Reviewer,
        tenants: Callable[[], TenantMap],
        clock: Clock,
        node_accounts: frozenset[ServiceAccount] = frozenset(),
        audience: str = AUDIENCE,
    ) -> None:
        """`node_accounts`: of the pool's nodes, which move slots and are no clients. `audience`:
        whom tokens must be meant for."""
        self._audience = audience
        self._reviewer = reviewer
        self._tenants = tenants
        self._clock = clock
        self._node_accounts = node_accounts
        self._passed: dict[bytes, _Verdict] = {}
        self._refused: dict[bytes, _Verdict] = {}
        self._reviews: dict[bytes, asyncio.Task[_Verdict]] = {}
        self._strangers: Counter[str] = Counter()
        """Reviews under way of tokens that did not pass before, by address."""

    async def caller(self, presented: Presented) -> Caller:
        if not presented.bearer:
            raise Unauthenticated(
                "no token came with the call: the client needs token_file (a projected "
                f"ServiceAccount token with audience {self._audience}); the ConfigMap "
                "<pool>-connection names the usual place"
            )
        claims = claims_of(presented.bearer, self._audience)
        if self._audience not in claims.audiences:
            raise Unauthenticated(
                f"the token is for {', '.join(claims.audiences) or 'nobody'}: mount one with "
                f"audience {self._audience}"
            )
        if self._clock.wall_s() >= claims.expires_s:
            raise Unauthenticated(
                "the token has ended: kubelet renews projected ones, so read the file anew; or a "
                "clock is wrong"
            )
        digest = hashlib.sha256(presented.bearer.encode()).digest()
        known = self._passed.get(digest) or self._refused.get(digest)
        if known is None or self._clock.monotonic_ns() >= known.fresh_until_ns:
            known = await self._review(digest, presented, claims)
        if known.error is not None:
            raise type(known.error)(str(known.error))  # a raised one collects every traceback
        assert known.caller is not None
        return known.caller

    async def _review(self, digest: bytes, presented: Presented, claims: Claims) -> _Verdict:
        """Ask once for all calls that wait with the same token."""
        task = self._reviews.get(digest)
        if task is None:
            stranger = digest not in self._passed
            if stranger:
                self._admit_stranger(presented.address)
            task = asyncio.create_task(self._ask(digest, presented.bearer, claims))
            self._reviews[digest] = task
            task.add_done_callback(
                lambda _: self._end_review(digest, presented.address if stranger else None)
            )
        # A call that is given up must not end the review of the others.
        return await asyncio.shield(task)

    def _admit_stranger(self, address: str) -> None:
        """Count a review of a token that did not pass before. RetryLater for one too many."""
        if self._strangers.total() >= REVIEWS_MAX:
            raise RetryLater(
                f"{REVIEWS_MAX} tokens are being reviewed already: Try again in a moment"
            )
        if address and self._strangers[address] >= REVIEWS_PER_ADDRESS_MAX:
            raise RetryLater(
                f"{REVIEWS_PER_ADDRESS_MAX} tokens from {address} are being reviewed already: Try "
                "again in a moment"
            )
        self._strangers[address] += 1

    def _end_review(self, digest: bytes, stranger: str | None) -> None:
        self._reviews.pop(digest, None)
        if stranger is not None:
            self._strangers[stranger] -= 1
            if not self._strangers[stranger]:
                del self._strangers[stranger]

    async def _ask(self, digest: bytes, token: str, claims: Claims) -> _Verdict:
        before = self._passed.get(digest)
        try:
            account = await self._reviewer.account(token)
            if account not in self._node_accounts:
                await self._reviewer.check_may_connect(account)
        except (Unauthenticated, Forbidden) as error:
            self._passed.pop(digest, None)
            refused = _Verdict(None, error, self._until(NEGATIVE_S))
            return _keep(self._refused, REFUSED_MAX, digest, refused)
        except (RetryLater, ConfigError) as error:
            if before is not None:
                # Soon again, but not with every call.
                before.fresh_until_ns = self._until(NEGATIVE_S)
                return before
            away = RetryLater(f"nobody can tell now whether the token is good: {error}. Try again")
            return _Verdict(None, away, 0)
        left_s = max(0, claims.expires_s - self._clock.wall_s())
        fresh_until_ns = self._until(min(POSITIVE_S, left_s))
        verdict = _Verdict(self._caller_of(account), None, fresh_until_ns)
        self._refused.pop(digest, None)
        return _keep(self._passed, CACHED_MAX, digest, verdict)

    def _caller_of(self, account: ServiceAccount) -> Caller:
        if account in self._node_accounts:
            return Caller(account.user, rights=Rights.PEER)
        return Caller(account.user, self._tenants().tenant_of(account.namespace, account.name))

    def _until(self, seconds: int) -> int:
        return self._clock.monotonic_ns() + seconds * 1_000_000_000


def _keep(
    known: dict[bytes, _Verdict], count_max: int, digest: bytes, verdict: _Verdict
) -> _Verdict:
    """Remember a verdict; where there is no room, the one that was reviewed longest ago goes."""
    known.pop(digest, None)
    while len(known) >= count_max:
        del known[next(iter(known))]
    known[digest] = verdict
    return verdict
