"""What people see: the tables of demo, bench and top, from figures that are given."""

import io

import pytest
from rich.console import Console

from memkv.bench.results import Result, Verdict
from memkv.bench.statistics import Pair
from memkv.bench.suite import verdict_of
from memkv.cli import bench, demo, nodes, top
from memkv.cli.output import Output
from memkv.cli.tables import Column, fitting, table
from memkv.demo.reference import Reference
from memkv.demo.report import DemoReport, Outage
from memkv.demo.tally import Tally
from memkv.limits import KIB, MIB
from memkv.localpool.facts import WorkerFacts, facts_of
from memkv.shardmap.map import Worker, WorkerState


def report(*, wrong_bytes: int = 0, served_again: int = 995, replaced: int = 5) -> DemoReport:
    tally = Tally(
        requests=1000, blocks=27_305, hit_blocks=2000, bytes_read=10**9, bytes_written=2 * 10**9,
        blocks_verified=2000, wrong_bytes=wrong_bytes, get_us=[1000.0, 2000.0], get_s=1.0,
        put_s=2.0,
    )  # fmt: skip
    return DemoReport(
        replay=tally.report(12.0), reference=Reference(27_305, 21_514, 4302, 0.08, 0.21),
        outage=Outage("node-2", 500, 50, 2, 1.5, 1000, replaced, served_again), nodes=3,
        capacity_bytes=2151 * MIB, block_bytes=512 * KIB, wrong_bytes=wrong_bytes,
        blocks_verified=2995, total_s=20.0,
    )  # fmt: skip


def drawn_demo(found: DemoReport) -> str:
    output = Output(stdout=io.StringIO())
    output.result(found.document(), lambda console: demo.draw(console, found))
    assert isinstance(output.stdout, io.StringIO)
    return output.stdout.getvalue()


def test_the_demo_names_every_figure() -> None:
    text = drawn_demo(report())
    for figure in (
        "requests", "prefix-hit ratio", "throughput", "get p50", "get p99", "blocks verified",
        "wrong bytes", "node killed", "warm ratio", "passed",
    ):  # fmt: skip
        assert figure in text
    assert "1.00 GB/s" in text
    assert "995 of 1,000 durable blocks served again; 5 of the others stored anew" in " ".join(
        text.split()
    )
    assert "99.50%" in text


def test_the_demo_fails_for_a_wrong_byte_and_for_a_cold_node() -> None:
    assert report().passed
    wrong = report(wrong_bytes=1)
    assert not wrong.passed
    assert "wrong bytes were served" in drawn_demo(wrong)
    cold = report(served_again=900)
    assert not cold.passed
    assert "under 99%" in drawn_demo(cold)
    assert report(served_again=990).passed
    assert not report(served_again=989).passed
    assert not report(served_again=0, replaced=1000).passed, "nothing to judge by is no success"


RESULT = Result(
    "get", "tcp", "dram", 2 * MIB, 1.9, 900.0, 1800.0, "bare stream", 2.0, 0.95,
    (Pair(1.9, 2.0),), 0.5, 8,
)  # fmt: skip


def test_a_result_has_the_public_names() -> None:
    document = RESULT.document()
    for name in (
        "op", "transport", "tier", "size_bytes", "gbps", "p50_us", "p99_us", "limit_gbps", "ratio",
        "pairs", "cpu_s_per_gb",
    ):  # fmt: skip
        assert name in document
    assert document["pairs"] == [[1.9, 2.0]]


def test_a_verdict_is_reached_missed_or_unknown() -> None:
    assert verdict_of(RESULT, 0.9).reached is True
    assert verdict_of(RESULT, 0.96).reached is False
    unknown = Result("get", "tcp", "flash", 2 * MIB, 1.9, limit="unknown (fio is not installed)")
    verdict = verdict_of(unknown, 0.9)
    assert verdict.reached is None
    assert "fio is not installed" in verdict.limit
    for one, word in ((verdict, "unknown"), (verdict_of(RESULT, 0.96), "NOT reached")):
        assert bench.one_line(one).startswith(word)
    output = Output(stdout=io.StringIO())
    verdicts = [Verdict("a", "1", "2", ">= 1", 0.5, False), verdict]
    output.result({}, lambda console: bench.draw_verdicts(console, verdicts))
    assert isinstance(output.stdout, io.StringIO)
    assert "not reached" in output.stdout.getvalue()


def facts(hits: int, *, uuid: bytes = b"u" * 16, problem: str = "") -> WorkerFacts:
    worker = Worker(uuid, 1, "node-1", "127.0.0.1", 7070, WorkerState.ACTIVE)
    return WorkerFacts(worker, 10, problem, counters={"hits_dram": hits})


def test_rates_are_between_two_looks_and_survive_a_restart() -> None:
    rates = top.rates_between([facts(100)], [facts(300)], 2.0)
    assert rates[b"u" * 16]["hits_dram"] == 100.0
    restarted = top.rates_between([facts(100)], [facts(30)], 1.0)
    assert restarted[b"u" * 16]["hits_dram"] == 30.0
    assert top.rates_between([facts(1)], [facts(2, problem="away")], 1.0) == {}
    assert top.rates_between([facts(1)], [facts(2, uuid=b"v" * 16)], 1.0) == {}


def test_facts_of_another_version_are_read_as_far_as_they_go() -> None:
    worker = facts(0).worker
    found = facts_of(worker, 3, {"blocks": 7, "bytes": "many", "counters": [], "new": 1})
    assert (found.blocks, found.used_bytes, dict(found.counters)) == (7, 0, {})
    assert found.document()["slots"] == 3


def test_names_of_others_are_no_markup() -> None:
    worker = Worker(b"u" * 16, 1, "[red]node[/]", "127.0.0.1", 7070, WorkerState.ACTIVE)
    output = Output(stdout=io.StringIO())
    output.console().print(top.draw({}, [WorkerFacts(worker, 1)], 160))
    assert isinstance(output.stdout, io.StringIO)
    assert "[red]node[/]" in output.stdout.getvalue()


def test_columns_that_do_not_fit_are_left_out_whole() -> None:
    columns = (Column("node"), Column("long", rank=2), Column("also", rank=1), Column("last"))
    row = ("n" * 8, "x" * 20, "y" * 10, "z" * 4)
    assert fitting(columns, [row], 80) == [0, 1, 2, 3]
    assert fitting(columns, [row], 40) == [0, 2, 3]
    assert fitting(columns, [row], 25) == [0, 3]
    assert fitting(columns, [row], 5) == [0, 3], "what has no rank always stays"


def test_markup_takes_no_space() -> None:
    columns = (Column("state"), Column("x", rank=1))
    assert fitting(columns, [("[green]active[/]", "1")], 20) == [0, 1]


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_no_table_of_workers_is_cut_or_wider_than_its_terminal(width: int) -> None:
    worker = Worker(b"u" * 16, 1, "storage-node-17", "10.200.30.40", 7070, WorkerState.ACTIVE)
    facts = WorkerFacts(
        worker, 4096, blocks=1_234_567, used_bytes=10**12, capacity_bytes=10**13,
        memory_bytes=10**10, memory_free_bytes=10**8, sessions=17,
    )  # fmt: skip
    rates = {worker.uuid: dict.fromkeys(top.RATES, 123_456.0)}
    for drawn in (
        top.draw(rates, [facts], width),
        table(nodes.COLUMNS, [nodes.row(facts)], width),
    ):
        console = Console(file=io.StringIO(), width=width)
        console.print(drawn)
        assert isinstance(console.file, io.StringIO)
        lines = console.file.getvalue().splitlines()
        assert "storage-node-17" in console.file.getvalue()
        assert all(len(line) <= width for line in lines)
        assert "…" not in console.file.getvalue()


def test_a_log_gets_a_line_for_each_phase_and_each_fifth() -> None:
    output = Output(stderr=io.StringIO())
    with output.progress() as report:
        report(0.0, "starting")
        for step in range(101):
            report(step / 100, f"replaying: {step} of 100")
    assert isinstance(output.stderr, io.StringIO)
    assert output.stderr.getvalue().splitlines() == [
        "starting", "replaying: 0 of 100", "replaying: 20 of 100", "replaying: 40 of 100",
        "replaying: 60 of 100", "replaying: 80 of 100", "replaying: 100 of 100",
    ]  # fmt: skip
