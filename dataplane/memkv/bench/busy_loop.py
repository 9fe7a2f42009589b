"""What loading costs an engine: a pure-Python loop beside 1 GB/s in its own process.

The loop's speed while its process loads, against its speed while another process loads as much:
the machine is equally busy, so the difference is what sharing a process (and its GIL) costs.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from memkv.bench.pump import Pump
from memkv.bench.results import MeasurementFailed
from memkv.bench.statistics import PAIRS_MIN, Pair, PairSummary, interleave, median, summarize
from memkv.bench.target import Target, attach
from memkv.client.credentials import Credentials
from memkv.limits import MIB

SIZE_BYTES = 2 * MIB
DATA_BYTES = 256 * MIB
PACE_GBPS = 1.0
TURN_S = 1.0
LEAD_S = 0.2  # the load runs before the loop is timed, and after
STEPS_PER_LOOK = 2_000


@dataclass(frozen=True, slots=True)
class BusyLoop:
    """`steps`: the loop's steps per second, load inside / load outside."""

    steps: PairSummary
    inside_gbps: float
    outside_gbps: float

    @property
    def slowdown(self) -> float:
        return 1.0 - self.steps.ratio


def loop_steps_per_s(seconds: float) -> float:
    """Run a loop that never lets go of the GIL by itself."""
    steps = value = 0
    begin = now = time.perf_counter()
    while now - begin < seconds:
        for number in range(STEPS_PER_LOOK):
            value = (value + number) % 65521
        steps += STEPS_PER_LOOK
        now = time.perf_counter()
    return steps / (now - begin)


def measure(target: Target, pairs: int = PAIRS_MIN, pace_gbps: float = PACE_GBPS) -> BusyLoop:
    """Measure both ways in turns."""
    keys = [f"busy-loop/{number}" for number in range(DATA_BYTES // SIZE_BYTES)]
    inside: list[float] = []
    outside: list[float] = []
    load_s = TURN_S + 2 * LEAD_S
    with closing(Pump(target.client, SIZE_BYTES)) as pump:
        pump.fill_pool(keys)
        pump.get_each(keys)

        def with_own_load() -> float:
            load = threading.Thread(
                target=lambda: inside.append(pump.get(keys, load_s, pace_gbps).gbps)
            )
            load.start()
            time.sleep(LEAD_S)
            steps = loop_steps_per_s(TURN_S)
            load.join()
            return steps

        with closing(OtherProcess(target, pace_gbps)) as other:

            def with_foreign_load() -> float:
                other.begin(load_s)
                time.sleep(LEAD_S)
                steps = loop_steps_per_s(TURN_S)
                outside.append(other.end())
                return steps

            turns = interleave(pairs, with_own_load, with_foreign_load)
    if not inside:
        raise MeasurementFailed("the load beside the loop failed; see its error above")
    return BusyLoop(summarize([Pair(*turn) for turn in turns]), median(inside), median(outside))


class OtherProcess:
    """Loads the same keys at the same pace from a process of its own."""

    def __init__(self, target: Target, pace_gbps: float) -> None:
        options, proof = target.client.attachment.core.options, target.credentials
        command = [
            sys.executable, "-m", "memkv.bench.busy_loop", options.endpoint, options.pool,
            options.tenant, options.local_dir, str(pace_gbps),
        ]  # fmt: skip
        if proof is not None:
            command += [proof.ca, str(proof.certificate), str(proof.key)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def begin(self, seconds: float) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()

    def end(self) -> float:
        """Wait for the load to end and return its GB/s."""
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise MeasurementFailed("the other loading process ended; see its error above")
        return line

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve(arguments: Sequence[str]) -> None:
    """The other process: a load of so many seconds for each line on stdin."""
    endpoint, pool, tenant, local_dir, pace_gbps, *proof = arguments
    credentials = None
    if proof:
        credentials = Credentials(proof[0], certificate=Path(proof[1]), key=Path(proof[2]))
    keys = [f"busy-loop/{number}" for number in range(DATA_BYTES // SIZE_BYTES)]
    with (
        attach(endpoint, pool, tenant, local_dir, credentials) as client,
        closing(Pump(client, SIZE_BYTES)) as pump,
    ):
        print("ready", flush=True)
        for line in sys.stdin:
            print(pump.get(keys, float(line), float(pace_gbps)).gbps, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1:])
