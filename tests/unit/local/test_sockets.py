"""The Unix socket of a worker: long paths, what a dead worker left, and what is in the way."""

import gc
import os
import stat
from pathlib import Path

import pytest

from memkv.errors import ConfigError
from memkv.local.sockets import LocalListener, connect, socket_path

UUID = bytes(range(16))


def reaches(listener: LocalListener, path: Path) -> bool:
    with connect(path, 5.0) as near:
        far, _ = listener.socket.accept()
        with far:
            near.sendall(b"x")
            return far.recv(1) == b"x"


@pytest.mark.parametrize("depth", [1, 40])
def test_a_socket_at_any_depth(tmp_path: Path, depth: int) -> None:
    directory = tmp_path.joinpath(*["deep"] * depth)
    listener = LocalListener(directory, UUID)
    assert listener.path == socket_path(directory, UUID)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(listener.path.stat().st_mode) == 0o660
    assert reaches(listener, listener.path)
    listener.close()
    assert not listener.path.exists()
    listener.close()


def test_what_a_dead_worker_left_is_replaced(tmp_path: Path) -> None:
    first = LocalListener(tmp_path, UUID)
    first.socket.close()  # as a kill does: the name stays
    second = LocalListener(tmp_path, UUID)
    assert reaches(second, second.path)
    second.close()


def test_a_living_one_and_a_file_are_in_the_way(tmp_path: Path) -> None:
    first = LocalListener(tmp_path, UUID)
    with pytest.raises(ConfigError, match=r"listens on .* already; stop it"):
        LocalListener(tmp_path, UUID)
    first.socket.accept()[0].close()  # the look whether somebody lives there
    assert reaches(first, first.path)
    first.close()
    first.path.write_text("no socket")
    with pytest.raises(ConfigError, match="in the way and is no socket"):
        LocalListener(tmp_path, UUID)
    assert first.path.read_text() == "no socket"


def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="choose another --local-dir"):
        LocalListener(tmp_path / "file" / "run", UUID)


def test_nobody_there_is_an_os_error_that_leaks_nothing(tmp_path: Path) -> None:
    gc.collect()  # of what tests before this one left open
    descriptors = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path / "absent.sock", tmp_path.joinpath(*["deep"] * 40, "absent.sock")):
        with pytest.raises(OSError):
            connect(path, 1.0)
    assert len(os.listdir("/proc/self/fd")) == descriptors
