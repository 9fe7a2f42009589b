"""The devices of this machine over pyverbs, the distribution's binding of libibverbs.

pyverbs is imported with the first device that is there: a machine without RDMA never pays for it,
and needs no package. It works from pyverbs 44 (Debian 12) on. Its modules have no types, so what
comes of them stays within the files named driver_*.py.
"""

import errno
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memkv.rdma.verbs import Device, VerbsError

SYSFS = Path("/sys/class/infiniband")
NODES = Path("/dev/infiniband")
INTERFACES = Path("/sys/class/net")


class PyVerbs:
    """Implements `Verbs`."""

    def __init__(self, sysfs: Path = SYSFS, nodes: Path = NODES) -> None:
        self._sysfs = sysfs
        self._nodes = nodes

    def device_names(self) -> list[str]:
        """What libibverbs lists: it leaves out a device whose node in /dev is not here."""
        if not self._known_to_the_kernel():
            return []
        return _listed()

    def interfaces(self) -> frozenset[int]:
        texts = [_text(path) for path in INTERFACES.glob("*/ifindex")]
        return frozenset(int(text) for text in texts if text.isdigit())

    def open(self, name: str) -> Device:
        if name not in self._known_to_the_kernel():
            raise VerbsError(f"there is no RDMA device {name} on this machine", errno.ENODEV)
        if name not in _listed():
            raise VerbsError(self._why_not_listed(name), errno.ENODEV)
        with _importing_pyverbs():
            from memkv.rdma.driver_device import PyVerbsDevice
        return PyVerbsDevice(name, self._node(name), self._numa_node(name))

    def _known_to_the_kernel(self) -> list[str]:
        return sorted(path.name for path in self._sysfs.glob("*"))

    def _node(self, name: str) -> Path:
        """The node in /dev through which a device is used."""
        for path in sorted((self._sysfs.parent / "infiniband_verbs").glob("uverbs*")):
            if _text(path / "ibdev") == name:
                return self._nodes / path.name
        return self._nodes / "uverbsN"

    def _why_not_listed(self, name: str) -> str:
        node = self._node(name)
        if not node.exists():
            return (
                f"the kernel has the RDMA device {name}, but {node} is not here: load the module"
                " ib_uverbs; in a container or a pod ask for the RDMA resource of the device plugin"
            )
        return (
            f"the kernel has the RDMA device {name}, but libibverbs has no provider for it: install"
            " ibverbs-providers of the same version as libibverbs"
        )

    def _numa_node(self, name: str) -> int:
        text = _text(self._sysfs / name / "device" / "numa_node")
        return int(text) if text.lstrip("-").isdigit() else -1


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _listed() -> list[str]:
    with _importing_pyverbs():
        from memkv.rdma.driver_device import device_names
    return device_names()


@contextmanager
def _importing_pyverbs() -> Iterator[None]:
    """Say what is missing, and undo that pyverbs configures logging when imported."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    except ImportError as error:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise VerbsError(
            f"RDMA needs pyverbs, which this Python {version} does not find ({error}): `apt-get"
            " install python3-pyverbs` (dnf: python3-pyverbs) gives it to the system's Python; a"
            " virtual environment of that Python sees it when made with --system-site-packages",
            errno.ENOENT,
        ) from error
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
