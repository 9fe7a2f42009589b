"""Times as Kubernetes writes them."""

from datetime import UTC, datetime


def rfc3339(wall_s: int) -> str:
    """Return a time in seconds since 1970 as metav1.Time."""
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def rfc3339_micro(wall_s: int) -> str:
    """Return it as metav1.MicroTime."""
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.000000Z")


def utc(wall_s: int) -> datetime:
    """Return a time in seconds since 1970 as a value that certificates are compared with."""
    return datetime.fromtimestamp(wall_s, UTC)
