"""Tokens of ServiceAccounts, and a reviewer that knows them: the API server's part in tests."""

import asyncio
import base64
import json

from memkv.errors import RetryLater
from memkv.metadata.bearer import AUDIENCE, ServiceAccount
from memkv.metadata.callers import Forbidden, Unauthenticated


def make_token(
    subject: str = "team-a/engine", *, expires_s: int, audience: object = AUDIENCE,
    signature: str = "c2lnbmVk",
) -> str:
    """Return a token of the form that kubelet mounts; nobody signed it."""
    header = {"alg": "RS256", "kid": "test"}
    body = {"aud": [audience] if isinstance(audience, str) else audience, "exp": expires_s,
            "sub": subject}  # fmt: skip
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
        for part in (header, body)
    ]
    return ".".join([*parts, signature])


class FakeReviewer:
    """Implements `memkv.metadata.bearer.Reviewer`."""

    def __init__(self) -> None:
        self.accounts: dict[str, ServiceAccount] = {}
        """Good tokens."""
        self.forbidden: set[ServiceAccount] = set()
        """Who may not connect."""
        self.away = False
        self.asked = 0
        """Tokens that were reviewed."""
        self.gate: asyncio.Event | None = None
        """Answers wait for it."""

    def trust(self, token: str, namespace: str = "team-a", name: str = "engine") -> ServiceAccount:
        """Make a token good."""
        account = ServiceAccount(namespace, name)
        self.accounts[token] = account
        return account

    async def account(self, token: str) -> ServiceAccount:
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.away:
            raise RetryLater("the API server does not answer")
        account = self.accounts.get(token)
        if account is None:
            raise Unauthenticated("the API server does not know the token")
        return account

    async def check_may_connect(self, account: ServiceAccount) -> None:
        if self.away:
            raise RetryLater("the API server does not answer")
        if account in self.forbidden:
            raise Forbidden(f"{account.user} may not get memkvpools/connect")
