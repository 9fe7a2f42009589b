"""An open device over pyverbs. Importing this module imports pyverbs."""

import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pyverbs.device import Context, get_device_list
from pyverbs.pd import PD
from pyverbs.pyverbs_error import PyverbsError

from memkv.rdma import driver_constants as constants
from memkv.rdma import driver_memory as memory
from memkv.rdma.driver_errors import closed, refusals
from memkv.rdma.driver_event_fd import with_event_fd
from memkv.rdma.driver_queue_pair import READS_MAX, Place, PyVerbsQueuePair
from memkv.rdma.verbs import Access, Event, EventKind, Gid, LinkLayer, Port, VerbsError


def device_names() -> list[str]:
    """Devices that libibverbs has a provider and a node in /dev for."""
    try:
        return sorted(device.name.decode() for device in get_device_list())
    except PyverbsError:  # it says no more than that the list failed: no module of the kernel
        return []


class PyVerbsDevice:
    """Implements `Device`."""

    def __init__(self, name: str, node: Path, numa_node: int) -> None:
        self.name = name
        self.numa_node = numa_node
        with refusals("open", f"cannot open the RDMA device {name} ({node})"):
            self._context, self.event_fd = with_event_fd(lambda: Context(name=name))
            try:
                self._domain = memory.Domain(PD(self._context))
                limits = self._context.query_device()
            except PyverbsError:
                self._context.close()
                raise
        self._is_open = True
        self._ports_count = int(limits.phys_port_cnt)
        self._reads_max = min(
            READS_MAX, int(limits.max_qp_rd_atom), int(limits.max_qp_init_rd_atom)
        )

    def ports(self) -> list[Port]:
        with self._opened(), refusals("ports", f"cannot look at the ports of {self.name}"):
            found = [
                (number, self._context.query_port(number))
                for number in range(1, self._ports_count + 1)
            ]
            table = self._context.query_gid_table(sum(port.gid_tbl_len for _, port in found))
        gids: dict[int, list[Gid]] = {}
        for entry in table:
            kind = constants.GID_TYPES.get(entry.gid_type)
            if kind is not None:
                value = bytes.fromhex(entry.gid_str().replace(":", ""))
                gid = Gid(int(entry.gid_index), value, kind, int(entry.ndev_ifindex))
                gids.setdefault(int(entry.port_num), []).append(gid)
        return [
            Port(
                device=self.name,
                number=number,
                is_active=port.state == constants.PORT_ACTIVE,
                state=constants.PORT_STATES[min(port.state, len(constants.PORT_STATES) - 1)],
                link_layer=constants.LINK_LAYERS.get(port.link_layer, LinkLayer.OTHER),
                mtu_bytes=constants.mtu_bytes(port.active_mtu),
                lid=int(port.lid),
                gids=tuple(gids.get(number, ())),
            )
            for number, port in found
        ]

    def register(self, address: int, size_bytes: int, access: Access) -> memory.PyVerbsRegion:
        with self._opened():
            return memory.register(self._domain, address, size_bytes, access)

    def register_dmabuf(
        self, fd: int, offset: int, size_bytes: int, access: Access
    ) -> memory.PyVerbsRegion:
        with self._opened():
            return memory.register_dmabuf(self._domain, fd, offset, size_bytes, access)

    def allocate_window(self) -> memory.PyVerbsWindow:
        with self._opened():
            return memory.PyVerbsWindow(self._domain)

    def open_queue_pair(
        self, port: int, gid_index: int, depth: int, access: Access, traffic_class: int = 0
    ) -> PyVerbsQueuePair:
        with self._opened():
            with refusals("ports", f"cannot look at port {port} of {self.name}"):
                mtu_bytes = constants.mtu_bytes(self._context.query_port(port).active_mtu)
            place = Place(port, gid_index, mtu_bytes, self._reads_max, depth, access, traffic_class)
            return PyVerbsQueuePair(self._domain, self._context, place)

    def events(self) -> list[Event]:
        ready = select.poll()
        with self._opened():
            ready.register(self.event_fd, select.POLLIN)
        found: list[Event] = []
        # Of a readable descriptor the next event is taken without waiting.
        while ready.poll(0):
            with self._opened():
                try:
                    event = self._context.get_async_event()
                except PyverbsError:
                    if not ready.poll(0):  # another thread took it
                        break
                    return [*found, Event(EventKind.DEVICE_GONE, 0, "no more events")]
                number = int(event.event_type)
                event.ack()
            found.append(self._event(number))
        return found

    def _event(self, number: int) -> Event:
        """pyverbs tells neither port nor queue pair of an event."""
        if number >= len(constants.EVENTS):
            return Event(EventKind.OTHER, 0, f"event {number}")
        name, kind = constants.EVENTS[number]
        of_port = kind in (EventKind.PORT_UP, EventKind.PORT_DOWN, EventKind.GIDS_CHANGED)
        return Event(kind, 1 if of_port and self._ports_count == 1 else 0, name)

    def close(self) -> None:
        with self._domain.lock:
            if not self._is_open:
                return
            closing: list[Callable[[], None]] = [
                *(window.close for window in self._domain.windows),
                *(pair.close for pair in self._domain.pairs),
                *(region.close for region in self._domain.regions),
                self._domain.protection.close,
                self._context.close,
            ]
            failed = [error for close in closing if (error := self._failure(close))]
            self._is_open = False
        if failed:
            raise failed[0]

    def _failure(self, close: Callable[[], None]) -> VerbsError | None:
        """What is left after one failed is closed all the same."""
        try:
            with refusals("close", f"cannot close the RDMA device {self.name}"):
                close()
        except VerbsError as error:
            return error
        return None

    @contextmanager
    def _opened(self) -> Iterator[None]:
        """Another thread may close the device at any other time."""
        with self._domain.lock:
            if not self._is_open:
                raise closed(f"the RDMA device {self.name}")
            yield
