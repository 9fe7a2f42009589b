"""The figures that MemKV must reach, each measured next to its limit.

One row is one function; a measurement that fails becomes a row that says why, so that the others
are still seen. Pools are started by group: rows of one group share one.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from memkv.bench import busy_loop, exists_rate, index_memory, reopen, resident, small_get, transfer
from memkv.bench.disk_limit import DiskLimit
from memkv.bench.encrypted_limit import EncryptedStreamLimit
from memkv.bench.encrypted_pool import encrypted_pool
from memkv.bench.limits import FioLimit, Limit, MemoryLimit, SmallestOf, StreamLimit
from memkv.bench.results import Result, Verdict
from memkv.bench.statistics import PAIRS_MIN
from memkv.bench.target import SIZINGS, Target, own_pool
from memkv.errors import MemKVError
from memkv.limits import GIB, MIB

FIO_FILE_BYTES = 2 * GIB
SLOWDOWN_MAX = 0.05
PACE_SHARE_MIN = 0.99  # of the full 1 GB/s
PACE_SHARE_TLS = 0.5  # of what gets under TLS reach

Report = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and where. `seconds` a side and figure, spread over `pairs`."""

    directory: Path
    seconds: float = 5.0
    pairs: int = PAIRS_MIN


Row = Callable[[Plan, Target], list[Verdict]]
LonelyRow = Callable[[Plan], list[Verdict]]


@dataclass(frozen=True, slots=True)
class Group:
    """A pool and the rows measured in it; no pool where `tier` is empty. Transport "tls" is TCP
    in a pool with certificates."""

    name: str
    tier: str
    transport: str
    rows: tuple[tuple[str, Row], ...]


def run(plan: Plan, report: Report, only: str = "") -> Iterator[Verdict]:
    """Yield verdicts as they are found; `only` keeps the groups whose name contains it."""
    groups = [group for group in GROUPS if only in group.name]
    total = sum(len(group.rows) for group in groups) + len(groups_without_pool(only))
    done = 0
    for group in groups:
        directory = plan.directory / group.name
        with _pool(group, directory) as opened:
            for name, row in group.rows:
                report(done / total, name)
                yield from _attempt(name, partial(_in_pool, row, plan, opened))
                done += 1
    for name, alone in groups_without_pool(only):
        report(done / total, name)
        yield from _attempt(name, partial(alone, plan))
        done += 1


def _in_pool(row: Row, plan: Plan, opened: Callable[[], Target]) -> list[Verdict]:
    return row(plan, opened())


@contextmanager
def _pool(group: Group, directory: Path) -> Iterator[Callable[[], Target]]:
    """Yield a function that starts the pool when it is first asked for, and raises if it cannot."""
    with ExitStack() as stack:
        opened: list[Target] = []

        def get() -> Target:
            if not opened:
                directory.mkdir(parents=True, exist_ok=True)
                sizing = SIZINGS[group.tier]
                if group.transport == "tls":
                    pool = encrypted_pool(directory, sizing)
                else:
                    pool = own_pool(directory, sizing, transport=group.transport)
                opened.append(stack.enter_context(pool))
            return opened[0]

        yield get


def _attempt(name: str, measure: Callable[[], list[Verdict]]) -> list[Verdict]:
    try:
        return measure()
    except (MemKVError, OSError) as error:
        return [Verdict(name, "", "", "", None, None, f"not measured: {error}")]


# --- rows ------------------------------------------------------------------------------------


def _transfer_row(
    plan: Plan, target: Target, wanted: float, limit: Limit, op: str, tier: str, size_bytes: int,
    transport: str = "tcp",
) -> list[Verdict]:  # fmt: skip
    spec = transfer.Transfer(op, transport, tier, size_bytes, plan.seconds, plan.pairs)
    with closing(limit):
        found = transfer.measure(spec, target, limit, SIZINGS[tier].data_bytes)
    return [verdict_of(found, wanted)]


def verdict_of(found: Result, wanted: float) -> Verdict:
    """Judge a transfer by its ratio."""
    what = f"{found.transport} {found.op}, {found.tier}, {found.size_bytes // MIB} MiB"
    known = found.ratio is not None
    return Verdict(
        what,
        f"{found.gbps:.2f} GB/s",
        f"{found.limit_gbps:.2f} GB/s ({found.limit})" if known else found.limit,
        f">= {wanted:g} of it",
        found.ratio,
        found.ratio >= wanted if found.ratio is not None else None,
        f"p50 {found.p50_us / 1000:.2f} ms a call of {found.blocks_per_call} blocks,"
        f" {found.cpu_s_per_gb or 0:.2f} CPU s/GB",
        {"result": found.document()},
    )


def _stream_get(size_bytes: int) -> Row:
    return lambda plan, target: _transfer_row(
        plan, target, 0.9, StreamLimit(size_bytes), "get", "dram", size_bytes
    )


def _flash_get(plan: Plan, target: Target) -> list[Verdict]:
    limit = SmallestOf([_fio(plan, "randread", 2 * MIB), StreamLimit(2 * MIB)])
    return _transfer_row(plan, target, 0.9, limit, "get", "flash", 2 * MIB)


def _put(plan: Plan, target: Target) -> list[Verdict]:
    limit = SmallestOf([_fio(plan, "randwrite", 2 * MIB), StreamLimit(2 * MIB)])
    return _transfer_row(plan, target, 0.8, limit, "put", "flash", 2 * MIB)


def _local_dram(plan: Plan, target: Target) -> list[Verdict]:
    limit = MemoryLimit(16 * MIB)
    return _transfer_row(plan, target, 0.85, limit, "get", "dram", 16 * MIB, "local")


def _local_flash(plan: Plan, target: Target) -> list[Verdict]:
    limit = _fio(plan, "randread", 2 * MIB)
    return _transfer_row(plan, target, 0.9, limit, "get", "flash", 2 * MIB, "local")


def _fio(plan: Plan, kind: str, size_bytes: int) -> FioLimit:
    return FioLimit(DiskLimit(plan.directory, size_bytes, FIO_FILE_BYTES), kind)


def _exists(plan: Plan, target: Target) -> list[Verdict]:
    found = exists_rate.measure(target, plan.seconds, plan.pairs)
    return [Verdict(
        "batch_is_exist, 512 keys a call", f"{found.keys_per_s:,.0f} keys/s", "",
        ">= 300,000 keys/s", found.keys_per_s / 300_000, found.keys_per_s >= 300_000,
        f"p50 {found.p50_us:.0f} µs, p99 {found.p99_us:.0f} µs a call",
        {"turns": list(found.turns)},
    )]  # fmt: skip


def _small(plan: Plan, target: Target) -> list[Verdict]:
    found = small_get.measure(target, plan.pairs)
    ping = f"{found.alone.limit:.1f} µs (bare TCP ping-pong)"
    alone = Verdict(
        "4 KiB get, p50", f"{found.alone.figure:.1f} µs", ping, "<= 2.5x",
        found.alone.ratio, found.alone.ratio <= 2.5, f"p99 {found.alone_p99_us:.0f} µs",
    )  # fmt: skip
    loaded = Verdict(
        "4 KiB get, p99 beside 2 MiB gets", f"{found.loaded_p99_us:.0f} µs", ping, "<= 10x",
        found.loaded_ratio, found.loaded_ratio <= 10,
        f"p50 {found.loaded_p50_us:.0f} µs; a bare ping-pong beside the same"
        f" {found.bulk_gbps:.2f} GB/s: p99 {found.ping_loaded_p99_us:.0f} µs;"
        f" medians of {len(found.loaded)} turns",
        {"turns": [asdict(turn) for turn in found.loaded]},
    )  # fmt: skip
    return [alone, loaded]


def _busy(plan: Plan, target: Target) -> list[Verdict]:
    return _beside_loop(plan, target, busy_loop.PACE_GBPS, "")


def _beside_loop(plan: Plan, target: Target, pace_gbps: float, how: str) -> list[Verdict]:
    # Short turns and many: the loop alone varies by a fifth from second to second.
    found = busy_loop.measure(target, 3 * plan.pairs, pace_gbps)
    full = min(found.inside_gbps, found.outside_gbps) >= PACE_SHARE_MIN * pace_gbps
    return [Verdict(
        f"slowdown of a busy Python loop{how}", f"{found.slowdown:.1%}",
        "the same load from another process", f"<= 5% at {pace_gbps:.2g} GB/s", found.slowdown,
        found.slowdown <= SLOWDOWN_MAX and full,
        f"loaded {found.inside_gbps:.2f} GB/s inside, {found.outside_gbps:.2f} GB/s outside",
        {"pairs": [[pair.figure, pair.limit] for pair in found.steps.pairs]},
    )]  # fmt: skip


def _encrypted(plan: Plan, target: Target) -> list[Verdict]:
    assert target.credentials is not None
    limit = EncryptedStreamLimit(2 * MIB, Path(target.credentials.ca), target.credentials.key)
    spec = transfer.Transfer("get", "tls", "dram", 2 * MIB, plan.seconds, plan.pairs)
    with closing(limit):
        found = transfer.measure(spec, target, limit, SIZINGS["dram"].data_bytes)
    verdict = verdict_of(found, 0.9)
    # As much as both sides reach, with a margin: full speed leaves the loop no time by itself.
    pace_gbps = min(busy_loop.PACE_GBPS, PACE_SHARE_TLS * found.gbps)
    return [verdict, *_beside_loop(plan, target, pace_gbps, " under TLS")]


def _resident(tier: str) -> Row:
    def row(plan: Plan, target: Target) -> list[Verdict]:
        found = resident.measure(target, SIZINGS[tier], plan.seconds, plan.pairs)
        allowed = resident.ALLOWANCE_BYTES
        return [Verdict(
            f"node RSS under load, {tier} pool", f"{found.peak_bytes / MIB:.0f} MiB",
            f"{found.configured_bytes / MIB:.0f} MiB configured", "<= configured + 150 MiB",
            found.over_bytes / allowed, found.highest_over_bytes <= allowed,
            f"peak of supervisor and worker together, median of {len(found.turns)} turns;"
            f" judged by the highest since their start, {found.highest_bytes / MIB:.0f} MiB",
            {"turns": list(found.turns)},
        )]  # fmt: skip

    return row


def _index(plan: Plan) -> list[Verdict]:
    found = index_memory.measure()
    return [Verdict(
        "index, 10 million blocks", f"{found.bytes_per_block:.1f} bytes a block", "",
        "<= 64 bytes", found.bytes_per_block / 64, found.bytes_per_block <= 64,
        f"peak RSS, median of {len(found.turns)} turns;"
        f" {found.interpreter_bytes / MIB:.0f} MiB of it are the interpreter",
        {"turns": [round(turn, 2) for turn in found.turns]},
    )]  # fmt: skip


def _reopen(plan: Plan) -> list[Verdict]:
    found = reopen.measure(plan.directory / "reopen", turns=plan.pairs)
    return [Verdict(
        "reopen, 100,000 blocks of 4 KiB", f"{found.seconds:.2f} s", "", "<= 2 s",
        found.seconds / 2, found.seconds <= 2 and found.blocks_back >= found.blocks,
        f"median of {len(found.turns)}; {found.remark}", {"turns": list(found.turns)},
    )]  # fmt: skip


GROUPS: tuple[Group, ...] = (
    Group("tcp-dram", "dram", "tcp", (
        ("tcp get, dram, 2 MiB", _stream_get(2 * MIB)),
        ("tcp get, dram, 16 MiB", _stream_get(16 * MIB)),
        ("batch_is_exist", _exists),
        ("4 KiB gets, alone and beside 2 MiB gets", _small),
        ("slowdown of a busy Python loop", _busy),
        ("node RSS under load, dram pool", _resident("dram")),
    )),
    Group("tcp-flash", "flash", "tcp", (
        ("tcp get, flash, 2 MiB", _flash_get),
        ("tcp put, cached, 2 MiB", _put),
        ("node RSS under load, flash pool", _resident("flash")),
    )),
    Group("tls-dram", "dram", "tls", (
        ("get under TLS, dram, 2 MiB, and a busy loop", _encrypted),
    )),
    Group("local-dram", "dram", "local", (("local get, dram, 16 MiB", _local_dram),)),
    Group("local-flash", "flash", "local", (("local get, flash, 2 MiB", _local_flash),)),
)  # fmt: skip

ALONE: tuple[tuple[str, str, LonelyRow], ...] = (
    ("index", "index, 10 million blocks", _index),
    ("reopen", "reopen, 100,000 blocks of 4 KiB", _reopen),
)


def groups_without_pool(only: str) -> list[tuple[str, LonelyRow]]:
    """Return the rows that need no running pool."""
    return [(name, row) for group, name, row in ALONE if only in group]
