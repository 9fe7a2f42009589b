"""How daemons wait for SIGTERM: in processes of their own, since signals belong to a process."""

import subprocess
import sys

import pytest

WAIT_S = 60
OTHER_THREAD = """
import threading
parked = threading.Event()
other = threading.Thread(target=parked.wait, daemon=True)
other.start()
"""
CASES = {
    "comes before anyone waits": "os.kill(os.getpid(), signal.SIGTERM)",
    # The main thread sleeps in a system call and is not interrupted: the handler alone never runs.
    "comes to another thread": OTHER_THREAD
    + "threading.Timer(0.2, signal.pthread_kill, (other.ident, signal.SIGTERM)).start()",
    "comes while waiting": "import threading\n"
    "threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()",
    "comes after another signal": "import threading\n"
    "signal.signal(signal.SIGUSR1, lambda *_: None)\n"
    "os.kill(os.getpid(), signal.SIGUSR1)\n"
    "threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()",
}


def run(program: str) -> str:
    begin = "import os, signal\nfrom memkv.daemons import StopSignals\nstopping = StopSignals()\n"
    done = subprocess.run(
        [sys.executable, "-c", begin + program], capture_output=True, text=True, timeout=WAIT_S,
        check=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.mark.parametrize("signal_comes", CASES.values(), ids=CASES)
def test_a_signal_ends_the_wait(signal_comes: str) -> None:
    program = f"{signal_comes}\nprint(stopping.wait(), stopping.is_set(), stopping.wait(0))"
    assert run(program) == "True True True"


def test_a_wait_may_end_without_a_signal() -> None:
    assert (
        run("print(stopping.is_set(), stopping.wait(0.01), stopping.wait(0))")
        == "False False False"
    )
