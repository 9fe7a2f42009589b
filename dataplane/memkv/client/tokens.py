"""One-time lane tokens: those at hand, then fresh ones."""

from __future__ import annotations

from collections.abc import Callable


class Tokens:
    """Not thread-safe: one keeper owns it."""

    def __init__(self, tokens: list[bytes], renew: Callable[[], list[bytes]]) -> None:
        self._tokens = tokens
        self._renew = renew

    def take(self) -> bytes:
        """Raises PeerGone when there are none and the worker gives none."""
        if not self._tokens:
            self._tokens = self._renew()
        return self._tokens.pop()
