"""A device of the fabric itself, as all processes that open it share it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from memkv.rdma.verbs import Event, EventKind, Gid, GidType, LinkLayer, Port

if TYPE_CHECKING:
    from memkv.testing.fake_verbs.device import FakeDevice
    from memkv.testing.fake_verbs.fabric import FakeFabric
    from memkv.testing.fake_verbs.memory import FakeRegion, FakeWindow

MTUS = (256, 512, 1024, 2048, 4096)


def usual_gids(serial: int, link_layer: LinkLayer) -> tuple[Gid, ...]:
    """What the kernel makes: link-local addresses first, each once per RoCE version."""
    link_local = bytes.fromhex("fe80") + bytes(6) + (0x200 << 48 | serial).to_bytes(8, "big")
    if link_layer is not LinkLayer.ETHERNET:
        return (Gid(0, link_local, GidType.INFINIBAND, 0),)
    address = bytes(10) + b"\xff\xff" + (10 << 24 | serial).to_bytes(4, "big")
    return (
        Gid(0, link_local, GidType.ROCE_V1, serial),
        Gid(1, link_local, GidType.ROCE_V2, serial),
        Gid(2, address, GidType.ROCE_V1, serial),
        Gid(3, address, GidType.ROCE_V2, serial),
    )


class Adapter:
    """Ports, and the keys of all memory registered with it. The fabric's lock guards it."""

    def __init__(self, fabric: FakeFabric, name: str, numa_node: int, ports: list[Port]) -> None:
        self.fabric = fabric
        self.name = name
        self.numa_node = numa_node
        self.ports = {port.number: port for port in ports}
        self.is_gone = False
        self.is_forbidden = False
        self.opened: list[FakeDevice] = []
        self.local_keys: dict[int, FakeRegion] = {}
        self.remote_keys: dict[int, FakeRegion | FakeWindow] = {}

    def gid(self, port: int, index: int) -> Gid | None:
        """An entry of a port's table as it is now."""
        found = [gid for gid in self.ports[port].gids if gid.index == index]
        return found[0] if found else None

    def is_active(self, port: int) -> bool:
        """Whether packets pass."""
        return not self.is_gone and self.ports[port].is_active

    def set_port(self, number: int, is_active: bool) -> None:
        """Bring a port up or down."""
        state = "active" if is_active else "down"
        self.ports[number] = replace(self.ports[number], is_active=is_active, state=state)
        kind = EventKind.PORT_UP if is_active else EventKind.PORT_DOWN
        self.tell(Event(kind, number, "port active" if is_active else "port error"))

    def set_gids(self, number: int, gids: tuple[Gid, ...]) -> None:
        """Replace a port's GID table."""
        self.ports[number] = replace(self.ports[number], gids=gids)
        self.tell(Event(EventKind.GIDS_CHANGED, number, "GID table change"))

    def remove(self) -> None:
        """Pull it out: nothing works any more but closing."""
        self.is_gone = True
        for device in self.opened:
            for queue_pair in list(device.queue_pairs):
                queue_pair.flush()
        self.tell(Event(EventKind.DEVICE_GONE, 0, "device fatal error"))

    def tell(self, event: Event) -> None:
        """Give an event to whoever has it open."""
        for device in self.opened:
            device.add_event(event)
