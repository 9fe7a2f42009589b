"""Many threads on one client, deadlines that no call can keep, close() under running calls."""

import random
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

import memkv
from memkv._hotpath import address_of
from memkv.client.options import ConnectOptions
from memkv.client.sync import Client
from memkv.errors import CallerError
from memkv.limits import KIB, MIB
from memkv.localpool.pool import LocalPool
from memkv.pattern import block, seed_of
from memkv.status import Status

WAIT_MS = 60_000
SLACK_S = 30  # of a busy machine; a call that hangs takes longer
THREADS = 8
LENGTHS = (1, 5_000, 64 * KIB, 64 * KIB + 1, 700_000)


def content(key: str) -> bytes:
    """A key always has the same bytes, so whatever is read can be judged."""
    return bytes(block(seed_of(key), LENGTHS[int(key.rpartition("-")[2]) % len(LENGTHS)]))


def together(*works: Callable[[], None]) -> None:
    """Run all at once; raise the first error of any."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SLACK_S * 4)
        assert not thread.is_alive(), "a call hangs"
    if errors:
        raise errors[0]


def hammer(client: Client, seed: int, rounds: int, allowed: set[int]) -> None:
    """Do everything to shared keys; every answer is judged."""
    choose = random.Random(seed)
    for _ in range(rounds):
        key = f"hammer-{choose.randrange(40)}"
        action = choose.randrange(6)
        if action == 0:
            data = client.get(key)
            assert data is None or data == content(key)
        elif action == 1:
            assert client.put(key, content(key)) in allowed
        elif action == 2:
            target = bytearray(MIB)
            size = client.batch_get_into([key], [address_of(target)], [MIB])[0]
            assert size in allowed or bytes(target[:size]) == content(key)
        elif action == 3:
            assert client.remove(key) in allowed
        elif action == 4:
            assert set(client.batch_is_exist([key, f"{key}-never"])) <= {0, 1} | allowed
        else:
            assert client.pin([key], 1)[0] in allowed | {Status.MISS, Status.QUOTA}


def test_many_threads_on_one_client_get_right_bytes(client: Client) -> None:
    allowed: set[int] = {Status.OK, Status.MISS}
    together(*(partial(hammer, client, n, 150, allowed) for n in range(THREADS)))
    assert client.stats().corrupt == 0


def test_closing_ends_the_calls_of_every_thread(pool: LocalPool) -> None:
    gone: set[int] = {Status.OK, Status.MISS, Status.UNAVAILABLE, Status.CLOSED}
    for attempt in range(6):
        client = memkv.connect(pool.endpoint)
        assert client.wait_ready(WAIT_MS)
        started = threading.Barrier(THREADS + 2)

        def work(
            seed: int, client: Client = client, started: threading.Barrier = started
        ) -> None:
            started.wait()
            hammer(client, seed, 60, gone)

        def close(client: Client = client, started: threading.Barrier = started) -> None:
            started.wait()
            client.stats()
            client.close()

        together(*(partial(work, n + attempt) for n in range(THREADS)), close, close)
        assert client.get("hammer-1") is None
        assert client.put("hammer-1", b"x") == Status.UNAVAILABLE
        assert client.completions() == []


def test_a_deadline_of_a_millisecond_is_kept_or_missed_in_order(
    pool: LocalPool, client: Client
) -> None:
    keys = [f"hurry-{n}" for n in range(20)]
    for key in keys:
        assert client.put(key, content(key)) == Status.OK
    options = ConnectOptions(pool.endpoint, deadline_ms=1, bootstrap_timeout_ms=WAIT_MS)
    targets = [bytearray(MIB) for _ in keys]
    pointers, sizes = [address_of(t) for t in targets], [MIB] * len(keys)
    with Client(options) as hurried:
        for _ in range(60):
            began = time.monotonic()
            results = hurried.batch_get_into(keys, pointers, sizes)
            assert time.monotonic() - began < SLACK_S
            for key, target, result in zip(keys, targets, results, strict=True):
                if result >= 0:
                    assert target[:result] == content(key)
                assert result >= 0 or result in {Status.TIMEOUT, Status.UNAVAILABLE, Status.BUSY}
                target[:] = bytes(MIB)
            assert hurried.put("hurry-0", content("hurry-0")) <= 0
            hurried.batch_is_exist(keys)
            assert all(t.count(0) == MIB for t in targets), "written after the call"
    assert client.get("hurry-0") == content("hurry-0")


def test_wrong_arguments_raise_and_change_nothing(client: Client) -> None:
    data = bytearray(100)
    wrong: list[Callable[[], object]] = [
        lambda: client.put("", data),
        lambda: client.put("k" * 513, data),
        lambda: client.put("\ud800", data),
        lambda: client.get(b""),
        lambda: client.batch_is_exist("not a list"),
        lambda: client.batch_get_into(["a", "b"], [address_of(data)], [100]),
        lambda: client.batch_get_into(["a"], [0], [100]),
        lambda: client.batch_put_from(["a"], [address_of(data)], [-1]),
        lambda: client.pin(["a"], 0),
        lambda: client.register_buffer(0, 10),
        lambda: client.unregister_buffer(1),
        lambda: memkv.PutOptions(ttl_s=0),
        lambda: memkv.connect("nonsense"),
        lambda: memkv.connect("127.0.0.1:99999"),
    ]
    for call in wrong:
        with pytest.raises(CallerError, match=r"\w.{18,}\w"):
            call()
    assert client.put(b"\xff\x00 not text", data) == Status.OK
    assert client.get(b"\xff\x00 not text") == bytes(100)
    assert client.put("nothing", b"") == Status.INVALID
    assert client.put("too much", bytes(16 * MIB + 1)) == Status.TOO_LARGE
    assert client.batch_is_exist([]) == []
    assert client.batch_get_into([], [], []) == []
