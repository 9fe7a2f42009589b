"""What `memkv doctor` says of drives: which a pool could have, and how far RDMA devices are."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from memkv.agent.content import Kind
from memkv.agent.decisions import Examined
from memkv.agent.inventory import Inventory
from memkv.agent.opened import HostDisks
from memkv.agent.rules import Limits
from memkv.cli import units
from memkv.cli.check import OK, Check
from memkv.clock import SystemClock
from memkv.errors import ConfigError

NODES = Path("/sys/devices/system/node")
LOCAL_DISTANCE = 10  # as the firmware counts: 10 is the node itself
UNKNOWN = 256  # it counts to 254


def examined_drives() -> list[Examined]:
    """Look at this machine's disks, by the rules of the agent. Reads, never writes."""
    root = Path("/")
    return Inventory(root, HostDisks(root), Limits(), SystemClock()).look(())


def drives(
    look: Callable[[], Sequence[Examined]], rdma_nodes: Mapping[str, int], nodes: Path = NODES
) -> list[Check]:
    """Say of every disk whether a pool could have it, and of usable ones which NIC is near."""
    try:
        found = look()
    except ConfigError as error:
        return [Check("drives", OK, f"not looked at: {error}")]
    verdicts = [(disk, *_verdict(disk)) for disk in found]
    usable = [disk for disk, is_usable, _ in verdicts if is_usable]
    lines = tuple(
        f"{'+' if is_usable else ' '} {disk.device.name:12}"
        f" {units.format_bytes(disk.device.size_bytes):>9}  {text}"
        for disk, is_usable, text in verdicts
    )
    summary = f"{len(usable)} of {len(found)} could be a pool's"
    if not usable:
        summary += "; a file on ext4 or XFS can"
    return [Check("drives", OK, summary, "", lines), _numa(usable, rdma_nodes, nodes)]


def _verdict(disk: Examined) -> tuple[bool, str]:
    if disk.reason:
        return False, disk.reason
    if disk.error:
        return False, disk.error
    if disk.held:
        return False, "somebody has it open for himself alone"
    if disk.content is None:
        return False, "its content is not known"
    name = disk.device.path
    if disk.content.kind is Kind.FOREIGN:
        what = disk.content.description
        return True, f"{name}: holds {what}; a pool erases it only when that is approved"
    return True, f"{name}: {disk.content.description}"


def _numa(usable: Sequence[Examined], rdma_nodes: Mapping[str, int], nodes: Path) -> Check:
    distances = read_distances(nodes)
    if len(distances) < 2:
        return Check("NUMA", OK, "one node")
    far = []
    lines = []
    for disk in usable:
        here = disk.device.numa_node
        ways = sorted(
            (distances.get(here, {}).get(there, UNKNOWN), name)
            for name, there in rdma_nodes.items()
        )
        said = ", ".join(f"{name} {d if d < UNKNOWN else 'unknown'}" for d, name in ways)
        lines.append(f"{disk.device.name} (node {here}): {said or 'no RDMA device'}")
        if ways and LOCAL_DISTANCE < ways[0][0] < UNKNOWN:
            far.append(disk.device.name)
    found = f"{len(distances)} nodes"
    if far:
        found += f"; no RDMA device on the node of {', '.join(far)}: payload crosses sockets"
    return Check("NUMA", OK, found, "", tuple(lines))


def read_distances(nodes: Path = NODES) -> dict[int, dict[int, int]]:
    """Return the distance between any two NUMA nodes; {} where the kernel knows of none."""
    numbers = sorted(int(path.name[4:]) for path in nodes.glob("node*") if path.name[4:].isdigit())
    table = {}
    for number in numbers:
        try:
            text = (nodes / f"node{number}/distance").read_text(encoding="ascii")
        except OSError:
            continue
        table[number] = dict(zip(numbers, map(int, text.split()), strict=False))
    return table
