"""Times as Kubernetes writes them."""

from datetime import UTC, datetime

from memkv.metadata.kubernetes.json_values import FieldInvalid


def rfc3339(wall_s: int) -> str:
    """Return a time in seconds since 1970 as metav1.Time."""
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def rfc3339_micro(wall_s: int) -> str:
    """Return it as metav1.MicroTime."""
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.000000Z")


def utc(wall_s: int) -> datetime:
    """Return a time in seconds since 1970 as a value that certificates are compared with."""
    return datetime.fromtimestamp(wall_s, UTC)


def seconds_between(before: str, after: str) -> float:
    """Return the seconds from one time in RFC 3339 to another. FieldInvalid for another text."""
    try:
        return (datetime.fromisoformat(after) - datetime.fromisoformat(before)).total_seconds()
    except (ValueError, TypeError) as error:
        raise FieldInvalid(f"{before!r} or {after!r} is no time ({error})") from error


def seconds_of(text: str) -> int:
    """Return a metav1.Time or MicroTime in seconds since 1970; 0 for what is none."""
    try:
        return int(datetime.fromisoformat(text).timestamp())
    except ValueError:
        return 0
