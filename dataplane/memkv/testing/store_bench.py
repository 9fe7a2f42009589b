"""A small store on a simulated drive, driven step by step."""

import random
import struct
from collections.abc import Iterable

from memkv import checksum, keys, pattern
from memkv.limits import KIB, MIB
from memkv.status import Status
from memkv.store.api import PendingPut, PutRequest, Store, StoreConfig, open_store
from memkv.tenant import Tenant
from memkv.testing.clock import ManualClock
from memkv.testing.device import WriteListDevice

SEGMENT_BYTES = 64 * KIB
LENGTH = 5000  # three sectors with the header; a segment holds four or five


class Bench:
    """A drive, a clock and the store that is open on them."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.device = WriteListDevice(1, size_bytes=MIB + 16 * SEGMENT_BYTES)
        self.evicted: list[bytes] = []
        self.config = StoreConfig(
            memory_bytes=256 * KIB, block_bytes_max=12 * KIB, index_blocks_max=400,
            segment_bytes=SEGMENT_BYTES, threads=False,
            on_evict=lambda _tag, block_id: self.evicted.append(block_id),
        )  # fmt: skip
        self.tenant = Tenant.named("default")
        self.store: Store

    def open(self) -> Store:
        """Open the drive as it is."""
        self.store = open_store(self.device, self.config, self.clock, random.Random(1))
        return self.store

    def reopen(self, clean: bool = True) -> Store:
        """Close and open again."""
        self.store.close(clean)
        return self.open()

    def power_loss(self) -> Store:
        """Lose what was not flushed, and open again."""
        self.device.after_crash()
        return self.open()

    @property
    def deadline_ns(self) -> int:
        """A second from now; the clock moves only when told."""
        return self.clock.monotonic_ns() + 1_000_000_000

    def request(
        self, key: str, tenant: Tenant | None = None, ttl_s: int = 0, durable: bool = False
    ) -> PutRequest:
        """Return the request of a sound put."""
        owner = tenant or self.tenant
        block_id = keys.block_id(key)
        seal = checksum.seal(self.data(key), block_id, owner.tag)
        return PutRequest(block_id, LENGTH, seal.root, seal.sums, ttl_s=ttl_s, durable=durable)

    def data(self, key: str) -> bytes:
        """Return the content of a key."""
        return pattern.block(pattern.seed_of(key), LENGTH)

    def begin(
        self, key: str, tenant: Tenant | None = None, ttl_s: int = 0, durable: bool = False
    ) -> PendingPut:
        """Begin a put that must be taken, and fill it."""
        put = self.store.begin_put(
            tenant or self.tenant, self.request(key, tenant, ttl_s, durable), self.deadline_ns
        )
        assert isinstance(put, PendingPut), put
        put.payload[:] = self.data(key)
        return put

    def put(
        self, key: str, tenant: Tenant | None = None, ttl_s: int = 0, durable: bool = False
    ) -> Status:
        """Put durably; OK at once for a block that is there."""
        request = self.request(key, tenant, ttl_s, durable)
        put = self.store.begin_put(tenant or self.tenant, request, self.deadline_ns)
        if not isinstance(put, PendingPut):
            return put
        put.payload[:] = self.data(key)
        status = put.commit()
        if status is not Status.OK:
            return status
        return self.store.wait_durable([put], self.deadline_ns)[0]

    def fill(self, count: int, prefix: str = "fill", tenant: Tenant | None = None) -> None:
        """Put durable blocks `prefix`-0, -1, ..."""
        for number in range(count):
            assert self.put(f"{prefix}-{number}", tenant) is Status.OK

    def get(self, key: str, tenant: Tenant | None = None, verify: bool = True) -> Status:
        """Read one key; the bytes of a hit must be right."""
        reader = self.store.new_reader()
        ids = keys.block_id(key)
        status = Status.INTERNAL
        for _, result in reader.read(
            tenant or self.tenant, ids, None, self.deadline_ns, verify=verify
        ):
            status = result.status
            if status is Status.OK:
                assert result.payload == self.data(key)
            result.release()
        reader.close()
        return status

    def hits(self, names: Iterable[str], tenant: Tenant | None = None) -> int:
        """Return how many keys hit."""
        return sum(self.get(name, tenant) is Status.OK for name in names)

    def delete(self, *names: str) -> None:
        """Delete keys; all must be acknowledged."""
        ids = keys.block_ids(names)
        statuses = self.store.delete(self.tenant, ids, self.deadline_ns)
        assert set(struct.unpack(f"<{len(names)}i", statuses)) == {Status.OK}

    @property
    def counters(self) -> dict[str, int]:
        """The store's counters by name."""
        return self.store.statistics().counters
