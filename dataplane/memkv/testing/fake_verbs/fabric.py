"""What joins the adapters: numbers, keys and routes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memkv.rdma.verbs import Gid, GidType, LinkLayer, Peer, Port
from memkv.testing.fake_verbs.adapter import Adapter, usual_gids
from memkv.testing.fake_verbs.engine import Engine
from memkv.testing.fake_verbs.knobs import Registration
from memkv.testing.fake_verbs.memory import RETRIES
from memkv.testing.fake_verbs.queue_pair import State

if TYPE_CHECKING:
    from memkv.testing.fake_verbs.queue_pair import FakeQueuePair


class FakeFabric(Engine):
    """Thread-safe. Close it at the end; what is still open is in `open_objects`."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.adapters: dict[str, Adapter] = {}
        self.queue_pairs: dict[int, FakeQueuePair] = {}
        self.registrations: list[Registration] = []
        """Every region that was ever registered."""
        self._serials = 0
        self._numbers: set[int] = set()

    # --- adapters ----------------------------------------------------------------------------

    def add_device(
        self, name: str, *, ports: int = 1, numa_node: int = -1, mtu_bytes: int = 4096,
        link_layer: LinkLayer = LinkLayer.ETHERNET,
    ) -> None:  # fmt: skip
        """Plug an adapter in. Its GIDs are unlike those of all others."""
        with self.lock:
            if name in self.adapters and not self.adapters[name].is_gone:
                raise ValueError(f"there is a device {name} already")
            made = []
            for number in range(1, ports + 1):
                self._serials += 1
                serial = self._serials
                gids = usual_gids(serial, link_layer)
                lid = serial if link_layer is LinkLayer.INFINIBAND else 0
                made.append(Port(name, number, True, "active", link_layer, mtu_bytes, lid, gids))
            self.adapters[name] = Adapter(self, name, numa_node, made)

    def set_port(self, name: str, is_active: bool, port: int = 1) -> None:
        """Bring a port up or down. What is on its way waits until it is up again."""
        with self.lock:
            self.adapters[name].set_port(port, is_active)
            self.wake()
            self.wait_for_piece()

    def set_gids(self, name: str, gids: tuple[Gid, ...], port: int = 1) -> None:
        """Replace a port's GID table, as when an address is taken from an interface."""
        with self.lock:
            self.adapters[name].set_gids(port, gids)
            self.wake()
            self.wait_for_piece()

    def remove_device(self, name: str) -> None:
        """Pull an adapter out."""
        with self.lock:
            self.adapters[name].remove()
            self.wait_for_piece()

    def forbid(self, name: str) -> None:
        """Have processes not be allowed to open a device."""
        with self.lock:
            self.adapters[name].is_forbidden = True

    # --- looking at it -------------------------------------------------------------------------

    def open_objects(self) -> dict[str, int]:
        """Count what is open, by kind; empty when all was closed."""
        with self.lock:
            devices = [device for one in self.adapters.values() for device in one.opened]
            counts = {
                "devices": len(devices),
                "regions": sum(len(device.regions) for device in devices),
                "windows": sum(len(device.windows) for device in devices),
                "queue pairs": sum(len(device.queue_pairs) for device in devices),
            }
            return {kind: count for kind, count in counts.items() if count}

    def exhaust_retries(self) -> None:
        """Fail requests whose peer is gone, as NICs do after some seconds and soft-RoCE never."""
        with self.lock:
            for queue_pair in list(self.queue_pairs.values()):
                is_waiting = queue_pair.state is State.READY and queue_pair.posted
                if is_waiting and self.route(queue_pair) is None:
                    queue_pair.finish(RETRIES)

    # --- for what belongs to the fabric, with its lock held --------------------------------------

    def new_key(self) -> int:
        """Return a key of memory that was never used before."""
        return self._new(1 << 8, 1 << 32)

    def new_number(self) -> int:
        """Return a queue pair number that was never used before."""
        return self._new(2, 1 << 24)

    def _new(self, first: int, end: int) -> int:
        with self.lock:
            while (number := self.random.randrange(first, end)) in self._numbers:
                pass
            self._numbers.add(number)
            return number

    def count_down(self, kind: str) -> bool:
        """Whether this is the one that fails."""
        left = self.knobs.fails_at.pop(kind, 0)
        if left > 1:
            self.knobs.fails_at[kind] = left - 1
        return left == 1 or kind in self.knobs.refuses

    def find_ports(self, peer: Peer, kind: GidType) -> set[tuple[str, int]]:
        """Return the active ports that a peer's address leads to."""
        return {
            (adapter.name, port.number)
            for adapter in self.adapters.values()
            for port in adapter.ports.values()
            if adapter.is_active(port.number)
            and (port.link_layer is not LinkLayer.INFINIBAND or port.lid == peer.lid)
            and any(gid.value == peer.gid and gid.type is kind for gid in port.gids)
        }

    def route(self, queue_pair: FakeQueuePair) -> FakeQueuePair | None:
        """Return the queue pair that answers this one's packets; None: they are lost."""
        peer = queue_pair.peer
        other = self.queue_pairs.get(peer.queue_pair) if peer is not None else None
        if peer is None or other is None or other.peer is None or other.state is not State.READY:
            return None
        here, there = queue_pair.device.adapter, other.device.adapter
        is_passable = (
            here.is_active(queue_pair.port)
            and here.gid(queue_pair.port, queue_pair.gid.index) == queue_pair.gid
            and (there.name, other.port) in self.find_ports(peer, queue_pair.gid.type)
            and other.gid.value == peer.gid
            and other.peer.queue_pair == queue_pair.number
            and other.peer.gid == queue_pair.gid.value
            and other.peer.sequence == queue_pair.sequence
        )
        return other if is_passable else None
