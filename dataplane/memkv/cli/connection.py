"""Opens a client for commands, and says in words what a status means."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from memkv.cli.exits import Exit
from memkv.cli.settings import CREDENTIALS, DEADLINE, ENDPOINT, POOL, TENANT, Settings
from memkv.errors import RetryLater
from memkv.status import Status

if TYPE_CHECKING:
    from memkv.client.credentials import Credentials
    from memkv.client.sync import Client

EXPLANATIONS: dict[Status, str] = {
    Status.MISS: "not stored: never put, evicted, expired or deleted",
    Status.CORRUPT: "the stored bytes failed their checks and were not returned; put it again",
    Status.TIMEOUT: "no answer within the deadline; a longer --deadline may help",
    Status.BUSY: "the node is over a limit; try again, or give it more memory",
    Status.UNAVAILABLE: "its owner did not answer; `memkv nodes` shows which nodes are away",
    Status.QUARANTINED: "the node is stuck: the answer may still come; `memkv nodes` shows it",
    Status.TOO_LARGE: "a block has at most 16 MiB, and at most a 64th of a node's flash",
    Status.INVALID: "the node refused the arguments",
    Status.NO_SPACE: "nothing could be evicted: pins, or a pool smaller than a few blocks",
    Status.DENIED: "this tenant may not do that in this pool; check --pool and --tenant",
    Status.PROTOCOL: "client and node do not understand each other; are their versions close?",
    Status.CLOSED: "the node closed the session; try again",
    Status.INTERNAL: "a bug in MemKV; please report it with the node's log",
    Status.BUFFER_TOO_SMALL: "the stored block is longer than the buffer",
    Status.QUOTA: "the tenant's pins or bytes are at their limit",
    Status.UNSUPPORTED: "the node is of an older version; upgrade it",
}

REFUSALS = ("PERMISSION_DENIED", "UNAUTHENTICATED")  # such causes name their own fix
NOBODY = ("Connection refused", "DNS resolution failed")  # of an endpoint that is wrong
PATIENCE_MS = 8_000  # several tries in a row may lead to a pod whose node is dead
UNREACHABLE = frozenset({Status.UNAVAILABLE, Status.TIMEOUT, Status.QUARANTINED, Status.CLOSED})


def explain(result: int) -> str:
    """Return what a negative result means and what to do."""
    try:
        status = Status(result)
    except ValueError:
        return f"status {result} (from a newer version?)"
    return f"{status.name}: {EXPLANATIONS.get(status, 'no explanation')}"


def status_document(result: int) -> dict[str, object]:
    """Return a result for JSON: the number, and for a negative one its name and meaning."""
    if result >= 0:
        return {"status": result}
    name, _, meaning = explain(result).partition(": ")
    return {"status": result, "status_name": name, "meaning": meaning}


def exit_of(results: Iterable[int]) -> Exit:
    """Return the exit code of a command with these results a key: the worst decides."""
    negative = {result for result in results if result < 0}
    if not negative:
        return Exit.OK
    return Exit.UNREACHABLE if UNREACHABLE & negative else Exit.FAILED


def credentials(settings: Settings) -> Credentials | None:
    """Return what proves the pool and the client; None without TLS. CallerError."""
    from memkv.client.credentials import credentials_of

    values = {field.name: settings[field] for field in CREDENTIALS}
    return credentials_of(values, "the flags")


def open_client(settings: Settings) -> Client:
    """Attach to the pool of the settings. Raises RetryLater with the reason when that fails."""
    import memkv

    client = memkv.connect(
        settings[ENDPOINT], pool=settings[POOL], tenant=settings[TENANT],
        deadline_ms=settings[DEADLINE], credentials=credentials(settings),
    )  # fmt: skip
    where = f"{settings[POOL]} at {settings[ENDPOINT]} (from {settings.origin(ENDPOINT)})"
    has_map = client.attachment.shard_map is not None
    if not has_map and not _naming(client.attachment.problems(), NOBODY + REFUSALS):
        client.wait_ready(PATIENCE_MS)
        has_map = client.attachment.shard_map is not None
    # A call would answer UNAVAILABLE for a node that is still being reached; a person can wait.
    if has_map and client.wait_ready(settings[DEADLINE]):
        return client
    problems = client.attachment.problems()
    refusals = _naming(problems, REFUSALS)
    if has_map and not refusals:
        return client  # some nodes are away: calls say which keys miss them
    client.close()
    if refusals:
        raise RetryLater(f"pool {where} refuses this client.\n  cause: {refusals[0]}")
    raise RetryLater(
        f"no pool {where}.\n"
        f"  cause: {problems[0] if problems else 'the metadata service did not answer'}\n"
        "  fix:   start one with `memkv up --nodes 3 --dir DIR`, or name another --endpoint"
    )


def _naming(problems: Iterable[str], words: Iterable[str]) -> list[str]:
    return [problem for problem in problems if any(word in problem for word in words)]
