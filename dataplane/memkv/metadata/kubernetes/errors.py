"""Answers of the API server, by what the caller should do."""

import json

from memkv.errors import CallerError, ConfigError, MemKVError, PeerGone, RetryLater


class Away(PeerGone):
    """It cannot be reached, or failed inside. Whether a write happened is unknown."""


class Conflict(RetryLater):
    """Somebody else wrote the object first. Read it again."""


class Gone(RetryLater):
    """The resource version is too old to watch from. List again."""


class TooMany(RetryLater):
    """It sheds load. Wait for `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotFound(MemKVError):
    """There is no such object, or no such kind."""


class Forbidden(ConfigError):
    """The ServiceAccount may not do this. The message names the missing right."""


class Invalid(CallerError):
    """The object breaks a rule of its kind. Trying again cannot help."""


def error_of(status: int, body: bytes, retry_after: str | None, what: str) -> MemKVError:
    """Return the error for an answer that is none of success. `what`: verb and object."""
    message = f"{what}: {_message(body) or f'HTTP {status}'}"
    if status == 404:
        return NotFound(message)
    if status == 409:
        return Conflict(message)
    if status == 410:
        return Gone(message)
    if status == 429:
        return TooMany(message, _seconds(retry_after))
    if status in (401, 403):
        return Forbidden(f"{message}; check the roles of this ServiceAccount")
    if 400 <= status < 500:
        return Invalid(message)
    return Away(message)


def _message(body: bytes) -> str:
    try:
        document = json.loads(body)
    except ValueError:
        return body[:200].decode("utf-8", "replace")
    return str(document.get("message", "")) if isinstance(document, dict) else ""


def _seconds(retry_after: str | None) -> float:
    try:
        return max(0.0, float(retry_after or 1))
    except ValueError:
        return 1.0
