"""Servers that tests start end with the tests, however these end."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

from memkv.testing import ends_with_parent

IN_TIME_MS = 60_000
STARTER = """
import sys, threading
from pathlib import Path
from memkv.testing.control_plane import Daemon
Daemon("server", ["/bin/sh", "-c", "echo $$; exec sleep 1000"], Path(sys.argv[1]))
print("started", flush=True)
threading.Event().wait()
"""


def test_a_test_server_ends_with_a_killed_pytest(tmp_path: Path) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    assert starter.stdout.readline() == "started\n"
    log = tmp_path / "server.log"
    while not log.read_text().endswith("\n"):
        os.sched_yield()
    server = os.pidfd_open(int(log.read_text()))
    ended = select.poll()
    ended.register(server, select.POLLIN)
    assert not ended.poll(0)
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    starter.stdout.close()
    assert ended.poll(IN_TIME_MS)
    os.close(server)


def test_a_server_whose_starter_is_gone_already_does_not_begin(tmp_path: Path) -> None:
    """Between the fork and the request to the kernel."""
    begun = tmp_path / "begun"
    command = [sys.executable, ends_with_parent.__file__, "1", "/bin/sh", "-c", f"touch {begun}"]
    assert subprocess.run(command).returncode == 1
    assert not begun.exists()
