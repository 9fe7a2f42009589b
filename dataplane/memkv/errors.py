"""Errors by what the caller should do. More specific ones live beside their part as subclasses.

Misses and refusals of single keys are values (`memkv.Status`), never exceptions: an engine must not
unwind because a cache is cold.
"""


class MemKVError(Exception):
    """Base of every exception MemKV raises on purpose."""


class CallerError(MemKVError, ValueError):
    """The arguments are wrong. Fix the call; trying again cannot help."""


class ConfigError(MemKVError):
    """The configuration, a file or a device is unfit. The message names the fix."""


class RetryLater(MemKVError):
    """Something outside is away or over its limit. The same call may work later."""


class PeerGone(RetryLater):
    """The peer closed, reset or never answered."""


class ProtocolError(MemKVError):
    """The peer sent what the protocol forbids. The connection must be closed."""


class InternalBug(MemKVError):
    """An invariant of MemKV does not hold. Please report it with the log."""
