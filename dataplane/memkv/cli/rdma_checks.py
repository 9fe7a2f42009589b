"""What `memkv doctor` says of RDMA: devices, ports, GIDs, memory that they may pin.

RDMA is optional: what keeps it from working is a warning, and payload goes over TCP.
"""

import ctypes
import mmap
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from memkv.cli import units
from memkv.cli.check import OK, WARNING, Check
from memkv.limits import MIB
from memkv.rdma.discovery import Choice, choose_all, explain, gid_address
from memkv.rdma.driver import SYSFS, PyVerbs
from memkv.rdma.verbs import Access, Device, LinkLayer, Verbs, VerbsError

REGISTERED_BYTES = 64 * MIB
DEPTH = 16
MTU_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Machine:
    """Where to look."""

    verbs: Verbs
    known: Sequence[str]
    """Devices that the kernel has, usable or not."""
    interfaces: Mapping[int, str]
    """Those of this network namespace, by index."""


def this_machine() -> Machine:
    """Return the one that this process runs on."""
    known = sorted(path.name for path in SYSFS.glob("*"))
    return Machine(PyVerbs(), known, dict(socket.if_nameindex()))


def rdma(machine: Machine) -> list[Check]:
    """Look at every device that the kernel has."""
    if not machine.known:
        return [Check("RDMA", OK, "no device; payload goes over TCP")]
    return [check for name in machine.known for check in _device(machine, name)]


def _device(machine: Machine, name: str) -> list[Check]:
    try:
        device = machine.verbs.open(name)
    except VerbsError as error:
        return [Check(f"RDMA {name}", WARNING, "cannot be used; payload goes over TCP", str(error))]
    try:
        choices = choose_all(device.ports(), machine.interfaces)
        return [
            _tried(device, choices),
            *(_port(choice, machine.interfaces) for choice in choices),
        ]
    except VerbsError as error:
        return [Check(f"RDMA {name}", WARNING, "answers with errors", str(error))]
    finally:
        device.close()


def _tried(device: Device, choices: Sequence[Choice]) -> Check:
    """Ask of a device what a node asks of it, and give it back."""
    name = f"RDMA {device.name}"
    amount = units.format_bytes(REGISTERED_BYTES)
    memory = mmap.mmap(-1, REGISTERED_BYTES)
    try:
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        device.register(address, REGISTERED_BYTES, Access.LOCAL_WRITE).close()
        for choice in choices:
            if choice.gid is not None:
                device.open_queue_pair(
                    choice.port.number, choice.gid.index, DEPTH, Access.LOCAL_WRITE
                ).close()
    except VerbsError as error:
        return Check(name, WARNING, "cannot be used; payload goes over TCP", str(error))
    node = f"NUMA node {device.numa_node}" if device.numa_node >= 0 else "NUMA node unknown"
    return Check(name, OK, f"{amount} registered, {_windows(device)}, {node}")


def _windows(device: Device) -> str:
    """Clients need them in strict mode only."""
    try:
        device.allocate_window().close()
    except VerbsError:
        return "no memory windows (strict mode needs them)"
    return "memory windows"


def _port(choice: Choice, interfaces: Mapping[int, str]) -> Check:
    port = choice.port
    name = f"RDMA {port.device} port {port.number}"
    found = f"{port.state}, {port.link_layer.value}, MTU {port.mtu_bytes}"
    details = tuple(explain([choice], interfaces))
    if choice.gid is None:
        return Check(name, WARNING, found, f"not used: {choice.reason}", details)
    found += f", GID {choice.gid.index} = {gid_address(choice.gid)} ({choice.reason})"
    if port.link_layer is LinkLayer.ETHERNET and port.mtu_bytes < MTU_BYTES_MAX:
        fix = (
            f"packets carry {port.mtu_bytes} bytes: an interface MTU of 4200 or more, on the switch"
            f" too, makes them {MTU_BYTES_MAX}"
        )
        return Check(name, WARNING, found, fix, details)
    return Check(name, OK, found, "", details)


def numa_nodes(sysfs: Path = SYSFS) -> dict[str, int]:
    """Return the NUMA node of each device that the kernel has; -1: unknown."""
    return {path.name: _integer(path / "device/numa_node") for path in sorted(sysfs.glob("*"))}


def _integer(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return -1
