"""Types of the native module; `memkv.testing.hotpath_oracle` is its pure-Python twin.

`Buffer` arguments are any contiguous object with the buffer protocol; writable where bytes arrive.
Functions marked "no GIL" release it for their whole length and hold the buffer until they return;
up to 64 KiB or 4096 keys they keep it, since beside a busy Python thread taking it back can cost a
switch interval (5 ms), a thousand times the work.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, final

from typing_extensions import Buffer

# --- sums.pxi --------------------------------------------------------------------------------
sums_engine: str
"""Which loops this machine runs: "avx2" or "baseline"."""

def xxh3_64(data: Buffer) -> int:
    """Return xxh3_64 with seed 0. No GIL."""

def xxh3_128(data: Buffer) -> bytes:
    """Return the 16 bytes of xxh3_128 with seed 0, low half first. No GIL."""

def chunk_sums(data: Buffer) -> bytes:
    """Return 8 little-endian bytes (xxh3_64) for each 256 KiB chunk. No GIL."""

def block_root(block_id: bytes, tenant_tag: bytes, length: int, sums: bytes) -> bytes:
    """Return the 16-byte xxh3_128 root that binds sums, id, tenant and length."""

def block_ids(keys: Sequence[str | bytes], salt: bytes) -> bytes:
    """Return 32 bytes a key: keyed BLAKE2b-256 of the length-prefixed key.

    A str counts as its UTF-8 bytes; an empty salt means an unkeyed hash. No GIL. Raises ValueError
    naming the index of the first key that is empty, over 512 bytes or not encodable.
    """

def slots_of(block_ids: bytes, slots: int) -> bytes:
    """Return a little-endian u16 slot (xxh3_64 of the id, mod `slots`) for each 32-byte id."""

def block_name(key: str | bytes, salt: bytes, slots: int) -> tuple[bytes, int]:
    """Return id and slot of one key, as `block_ids` and `slots_of` would."""

def group_by_owner(slots: bytes, owners: bytes) -> list[tuple[int, bytes]]:
    """Group key positions by owner: [(owner index, u32 positions little-endian)], owners ascending.

    `owners` is the map's u16 table, one entry a slot. Positions stay in the caller's order. Raises
    ValueError naming the first position whose slot is not in the table.
    """

def gather(records: bytes, width: int, positions: bytes) -> bytes:
    """Return records[p] of `width` bytes for each u32 position p; ValueError when there is none."""

def fill_pattern(target: Buffer, seed: int, offset: int = 0) -> None:
    """Fill with the content pattern of `seed` (u64), from byte `offset` of it on. No GIL."""

def check_pattern(data: Buffer, seed: int, offset: int = 0) -> int:
    """Return -1 when the bytes equal the pattern, else the first wrong byte's index. No GIL."""

def copy_memory(target: Buffer, source: Buffer) -> None:
    """memcpy of equal lengths that do not overlap. No GIL."""

def copy_and_sum(target: Buffer, source: Buffer) -> bytes:
    """copy_memory, then chunk_sums of what lies in `target`, chunk by chunk while hot. No GIL."""

def address_of(buffer: Buffer) -> int:
    """Return where the bytes lie. The caller keeps `buffer` alive and unmoved while it matters."""

def new_bytes(size_bytes: int) -> bytes:
    """Return bytes of undefined content, for a lane to fill before anyone else sees them."""

def memory_at(address: int, size_bytes: int) -> memoryview:
    """View foreign memory, writable. The caller keeps it alive and mapped."""

# --- index.pxi -------------------------------------------------------------------------------
@final
class BlockIndex:
    """Fixed table of blocks: 56 bytes a block, sized when made, never rehashed.

    An entry is named by a handle (u32) that stays valid until the entry is removed; then another
    block may get the number. Methods that take a handle raise ValueError when it names no entry.
    Numbers that do not fit their field raise OverflowError or ValueError. Not thread-safe beyond
    the GIL: every method is one atomic step.

    Stamps are a logical clock of 32 bits, so an order of stamps is one modulo 2**32.
    """

    def __init__(
        self, capacity: int, *, tag_bits: int = 128, check_tenant: bool = True,
        hash_key: bytes = ...,
    ) -> None:
        """`capacity` in blocks, all of whose memory is mapped now and touched as it is used.

        Ids are told apart by their first `tag_bits` bits; whoever reads a record checks the whole
        id. `tag_bits` below 128 and `check_tenant=False` are for tests that want colliding entries.
        `hash_key` (16 random bytes) keeps tenants, who choose their ids, from choosing buckets.
        """

    @property
    def capacity(self) -> int: ...
    @property
    def memory_bytes(self) -> int:
        """Bytes mapped for the whole table, touched or not."""
    @property
    def handles_end(self) -> int:
        """One more than the largest handle ever given since the last `clear`."""
    def __len__(self) -> int: ...
    def clear(self) -> None:
        """Remove every entry and give the memory back to the system until it is used again."""
    def find(self, tenant: int, block_id: bytes) -> int:
        """Return the handle, or -1. Does not look at expiry."""
    def insert(
        self, tenant: int, block_id: bytes, slot: int, sector: int, sectors: int, expiry_s: int,
        depth: int, stamp: int,
    ) -> int:
        """Add an entry (no buffer, flags 0); return its handle, -1 when full, -2 when present.

        `sector` has 40 bits, `sectors` and `slot` 16, `expiry_s` 32 (0: never); `depth` above 65535
        is kept as 65535 and `stamp` modulo 2**32.
        """
    def remove(self, handle: int) -> None: ...
    def remove_if_at(self, tenant: int, block_id: bytes, sector: int) -> bool:
        """Remove the entry only if it still points at `sector`: another put may own it now."""
    def location(self, handle: int) -> tuple[int, int]:
        """Return (first sector on the device, sectors with header)."""
    def relocate(self, handle: int, sector: int) -> None: ...
    def expiry_s(self, handle: int) -> int: ...
    def set_expiry_s(self, handle: int, expiry_s: int) -> None: ...
    def stamp(self, handle: int) -> int: ...
    def slot(self, handle: int) -> int: ...
    def tenant(self, handle: int) -> int: ...
    def depth(self, handle: int) -> int: ...
    def buffer(self, handle: int) -> int:
        """Return the DRAM buffer number that holds this block, or -1."""
    def set_buffer(self, handle: int, buffer: int) -> None: ...
    def flags(self, handle: int) -> int: ...
    def set_flags(self, handle: int, flags: int) -> None: ...
    def touch(self, handle: int, stamp: int) -> None: ...
    def find_many(self, tenant: int, block_ids: bytes, now_s: int) -> bytes:
        """Return an i32 handle (or -1: absent, or expired at `now_s`) for each id."""
    def exists_many(self, tenant: int, block_ids: bytes, now_s: int) -> bytes:
        """Return an i32 of 1 or 0 for each id, as the wire wants it."""
    def touch_many(self, handles: bytes, stamp: int) -> None:
        """Stamp 32-bit handles, the first (the head of a prefix) youngest: tails go first.

        Handle i gets `stamp + count - 1 - i`, so the clock moves on by their count. Handles that
        name no entry are skipped, so the answer of `find_many` can be passed as it is.
        """
    def handles_of_slot(self, slot: int, first: int = 0, end: int = 0xFFFFFFFF) -> bytes:
        """Return the u32 handles of one slot in [first, end), ascending.

        A scan: 2 ms a million entries. Long tables are scanned in parts up to `handles_end`.
        """
    def blocks_of_tenant(self, tenant: int, first: int, end: int, now_s: int) -> bytes:
        """Return 20 bytes for each entry of a tenant with a handle in [first, end) that has not
        expired at `now_s`: the first 16 of its id, and its depth as u32. A scan."""
    def remove_sectors(self, first: int, end: int) -> int:
        """Remove every entry whose first sector is in [first, end); return how many. A scan."""

# --- ring.pxi --------------------------------------------------------------------------------
@final
class IoRing:
    """One thread's queue to one file or device: io_uring, or pread/pwrite where that is refused.

    Buffers given to `read` and `write` are held (and must not change) until their token returns
    from `wait`.
    """

    def __init__(self, fd: int, depth: int, *, use_io_uring: bool = True) -> None: ...
    engine: str
    """"io_uring" or "pread"."""
    fallback_reason: str
    """Why io_uring was not used: likely cause and fix; empty when it is."""
    in_flight: int
    def register_arena(self, arena: Buffer) -> bool:
        """Register memory once so that I/O inside it skips page pinning; False when refused."""
    def guard(self, fd: int) -> bool:
        """Hold the file of `fd` open until the next call (-1: none), and after a kill of this
        process until what is in flight has ended; False when the kernel cannot."""
    def read(self, token: int, offset: int, buffers: Sequence[Buffer]) -> None: ...
    def write(self, token: int, offset: int, buffers: Sequence[Buffer]) -> None: ...
    def flush(self, token: int) -> None:
        """fdatasync. Covers writes whose tokens returned before this call, no others."""
    def discard(self, token: int, offset: int, length: int) -> None: ...
    def wait(self, min_complete: int, timeout_ms: int) -> list[tuple[int, int]]:
        """Submit what is queued; return [(token, bytes or -errno)]. No GIL while waiting."""
    def close(self) -> None:
        """Wait for what is in flight, then free the ring."""

# --- lanes.pxi -------------------------------------------------------------------------------
class StreamTimeout(Exception): ...
class StreamClosed(Exception): ...
class TlsFailed(StreamClosed): ...

@final
class TlsContext:
    """One role in TLS 1.3. Streams keep what they need of it."""

    @staticmethod
    def client(authorities: bytes, name: str) -> TlsContext:
        """Believe these certificates (PEM), for servers whose certificate has `name`. ValueError
        says what is unfit."""
    @staticmethod
    def server(certificate: bytes, key: bytes) -> TlsContext:
        """Show a certificate, others of its chain after it, in PEM. ValueError."""

@final
class Stream:
    """One connected byte stream (plain socket; TLS by the same interface). Owns the fd."""

    def __init__(
        self, fd: int, *, takes_fds: bool = False, tls: TlsContext | None = None
    ) -> None:
        """`takes_fds`: a Unix socket whose peer may pass file descriptors; a few are kept.
        `tls`: encrypted; the handshake is made on the way, or by `handshake`."""
    fd: int
    is_ahead: bool
    """Whether bytes may be there that no poll of the fd tells of."""
    def handshake(self, deadline_ns: int) -> None:
        """Make the TLS handshake, if there is one to make. No GIL. Raises TlsFailed with the
        reason, StreamTimeout or StreamClosed."""
    def rekey_after(self, size_bytes: int) -> None:
        """Change the sending keys after so many bytes, for tests of that."""
    def receive_ready(self, target: Buffer) -> int | None:
        """As `receive_some` without waiting; None when nothing is there yet."""
    def take_fds(self) -> list[int]:
        """Return the descriptors passed so far, at most 4; they are the caller's to close."""
    def stop_receiving(self) -> None:
        """Make whoever receives see the end of the stream; sending goes on. Any thread."""
    def receive(self, target: Buffer, deadline_ns: int) -> None:
        """Fill `target`. No GIL. Raises StreamTimeout or StreamClosed; then close the stream."""
    def receive_and_sum(self, target: Buffer, deadline_ns: int) -> bytes:
        """Fill `target` and return its chunk sums, computed while the bytes are hot. No GIL."""
    def receive_some(self, target: Buffer, deadline_ns: int) -> int:
        """Receive at least one byte, at most len(target); 0 means the peer closed. No GIL."""
    def discard(self, length: int, deadline_ns: int) -> None:
        """Read and drop `length` bytes. No GIL."""
    def send(self, buffers: Sequence[Buffer], deadline_ns: int) -> None:
        """Send all buffers in order. No GIL. Buffers must not change until it returns."""
    def shutdown(self) -> None:
        """Wake any thread inside this stream with StreamClosed; safe from any thread."""
    def close(self) -> None: ...

@final
class SingleGet:
    """A GET frame of one block without flags, its sums checked."""

    @property
    def block_id(self) -> bytes: ...
    @property
    def max_length(self) -> int: ...
    @property
    def request_id(self) -> int: ...
    @property
    def deadline_ms(self) -> int: ...
    @property
    def map_epoch(self) -> int: ...
    @property
    def map_term(self) -> int: ...

def receive_get(stream: Stream, target: Buffer, deadline_ns: int) -> SingleGet | int | None:
    """As `Stream.receive_some`, but bytes that are one sound SingleGet come back as that. With
    deadline 0 it does not wait, and None means that nothing is there yet."""

def send_hit(
    stream: Stream, request_id: int, root: bytes, sums: bytes, payload: Buffer, source: int,
    deadline_ns: int,
) -> None:
    """Send the answer to a SingleGet: its frame with LAST and the payload. As `Stream.send`."""

Scatter = Sequence[tuple[int, int]]
"""(address, bytes) of the pieces of one block in the caller's memory, in the block's order."""

class LaneStatistics(NamedTuple):
    """Counts of one lane group since it was made."""

    jobs_run: int
    """On a lane, by its thread or by a caller."""
    jobs_refused: int
    """BUSY, UNAVAILABLE or CLOSED when given."""
    jobs_expired: int
    """Deadline passed in the queue."""
    jobs_timed_out: int
    """Deadline passed on a lane, which was closed unless the job had not begun."""
    bytes_received: int
    bytes_sent: int
    """Payload only."""
    items_corrupt: int
    protocol_faults: int
    """Lanes closed because the peer broke the protocol."""
    lanes_added: int
    lanes_lost: int

@final
class Engine:
    """What the lane groups of one client share: completions behind one eventfd, and a timer."""

    def __init__(self) -> None: ...
    @property
    def event_fd(self) -> int:
        """Readable while completions wait. Poll it, never read it; owned by the engine."""
    def notify(self) -> None:
        """Make `event_fd` readable until the next `completions`, as if a job had ended."""
    def completions(self, limit: int) -> list[Job]:
        """Take up to `limit` jobs that ended: submitted with `notify`, or given up by `wait`.

        A `local_get` submitted with `notify` that is not done after its deadline and the group's
        grace comes with `overdue` set, and again when it is done.
        """
    def close(self) -> None:
        """Close every group. Completions can still be taken."""
    def abandon(self) -> None:
        """In the child of a fork: be closed, without a word to the peers of the parent."""

@final
class LaneGroup:
    """Connections of one class to one worker, a native thread each, and one queue. Thread-safe.

    With `grace_ms` the group is for `Job.local_get`: its lanes wait for the node beyond a deadline.

    Lanes are added connected and authenticated; they send, receive and verify without the GIL. A
    lane that misses a deadline, loses its peer or sees the protocol broken closes its socket and
    then completes its job: unanswered items get TIMEOUT, UNAVAILABLE or PROTOCOL. With no lane
    open, jobs complete as UNAVAILABLE at once; over `queue_max`, as BUSY.
    """

    def __init__(
        self, engine: Engine, name: str, lanes_max: int, queue_max: int = 1024, *,
        grace_ms: int = 0,
    ) -> None: ...
    @property
    def name(self) -> str: ...
    @property
    def lanes_max(self) -> int: ...
    @property
    def lanes_open(self) -> int: ...
    @property
    def lanes_idle(self) -> int:
        """Open lanes that would take a job at once."""
    @property
    def jobs_queued(self) -> int: ...
    def add_lane(self, lane: int | Stream, fence: Callable[[], None] | None = None) -> None:
        """Take over a connected fd or Stream, also when this raises ValueError (full, closed).

        `fence()` is called when the lane has ended, before the job on it completes: when it returns
        nothing writes into that job's memory any more. It is called again when it raises; until it
        returns the job is not done. Any thread, once at a time; not after it returned.
        """
    def submit(self, job: Job, notify: bool = False, wave: Wave | None = None) -> None:
        """Queue for the lane threads. With `notify` the engine reports the completion, and wakes
        its reader, once for all jobs of a wave."""
    def run(self, job: Job) -> None:
        """Run in this thread when a lane is idle, else queue; wait until the job's deadline.

        No GIL. The job may still be on a lane that is closing: `wait` with the fence budget tells.
        """
    def reap(self) -> int:
        """Close idle lanes whose peer has gone; return how many. For a keeper's tick."""
    def statistics(self) -> LaneStatistics: ...
    def close(self) -> bool:
        """Close all lanes and wait for the jobs on them; they and queued ones get CLOSED. True.

        With a grace: stop sending and wait so long at most. False: a job still awaits its node; its
        buffers are not free until it is done, and the group lives on by itself until then.
        """

@final
class Wave:
    """`count` jobs, all submitted with `notify`, of whose ends only the last one wakes the reader.

    What ended before is among the completions already, for whoever looks.
    """

    def __init__(self, count: int) -> None: ...

@final
class Job:
    """One request to one worker; given to a group once. When done, its buffers are free.

    `frame` is an encoded request: the lane sets request_id and deadline_ms (what is left when it
    is sent) and the sums. Buffers named by `scatters` must stay mapped until the job is done;
    `owner` is kept alive until then. `token` is the caller's. Constructors raise ValueError when
    frame and scatters do not fit together.
    """

    token: object
    @staticmethod
    def exchange(
        frame: bytes, reply_bytes_max: int, deadline_ns: int, *, token: object = None
    ) -> Job:
        """One frame for one frame. EXISTS, DELETE and PIN fill `statuses` and `hints`."""
    @staticmethod
    def get(
        frame: bytes, scatters: Sequence[Scatter], tenant_tag: bytes, deadline_ns: int, *,
        owner: object = None, token: object = None,
    ) -> Job:
        """A GET. Chunk sums are compared while bytes are hot, and the root before that."""
    @staticmethod
    def get_one(
        block_id: bytes, address: int, size: int, tenant_tag: bytes, map_epoch: int,
        map_term: int, deadline_ns: int,
    ) -> Job:
        """A GET of one block into one piece of memory, without a frame made before."""
    @staticmethod
    def get_ranges(
        frame: bytes, scatters: Sequence[Scatter], tenant_tag: bytes, deadline_ns: int, *,
        owner: object = None, token: object = None,
    ) -> Job:
        """A GET_RANGES: each item's ranges arrive back to back in its scatter list."""
    @staticmethod
    def put(
        frame: bytes, scatters: Sequence[Scatter], tenant_tag: bytes, deadline_ns: int, *,
        owner: object = None, token: object = None,
    ) -> Job:
        """PUTs: `frame` is a header with count N and N items of 88 bytes.

        The lane fills root, chunk_count and sums and sends one frame a block, LAST on the last.
        """
    @staticmethod
    def local_get(
        frame: bytes, scatters: Sequence[Scatter], tenant_tag: bytes, deadline_ns: int, *,
        owner: object = None, token: object = None,
    ) -> Job:
        """A LOCAL_GET: the node writes into the scatter lists, the lane checks what lies there.

        For groups with a grace. Done when the node has answered or is gone, so that the buffers are
        free then; an answer that comes after the deadline is TIMEOUT.
        """
    @staticmethod
    def local_put(
        frame: bytes, scatters: Sequence[Scatter], tenant_tag: bytes, deadline_ns: int, *,
        owner: object = None, token: object = None,
    ) -> Job:
        """LOCAL_PUTs: as `put`, and behind the items the parts of all of them in their order."""
    @staticmethod
    def rdma_get(
        frame: bytes, scatters: Sequence[Scatter], tenant_tag: bytes, deadline_ns: int, *,
        owner: object = None, token: object = None, unread: bool = False,
    ) -> Job:
        """An RDMA_GET: as `local_get`, for lanes with a fence. Ends by its deadline.

        `unread`: the memory is another device's, so that only the node has checked the bytes.
        """
    @staticmethod
    def rdma_put(
        frame: bytes, scatters: Sequence[Scatter], tenant_tag: bytes, deadline_ns: int, *,
        owner: object = None, token: object = None,
    ) -> Job:
        """RDMA_PUTs: as `local_put`."""
    @property
    def overdue(self) -> bool:
        """Set by `Engine.completions` while this is not done, see there."""
    @property
    def deadline_ns(self) -> int: ...
    @property
    def done(self) -> bool: ...
    # The results below raise RuntimeError while the job is not done.
    @property
    def status(self) -> int:
        """0 when every item was answered; else why the rest was not."""
    @property
    def first_status(self) -> int:
        """`statuses[0]`; ValueError for a job without items."""
    @property
    def statuses(self) -> list[int]:
        """One an item: bytes read (GET), 0 or 1, or a negative Status.

        The buffer of an item with a negative status may hold bytes of no value.
        """
    @property
    def lengths(self) -> list[int]:
        """Length of each stored block where the answer said it, also with BUFFER_TOO_SMALL."""
    @property
    def sources(self) -> list[int]:
        """0 DRAM, 1 flash, one an item of a GET."""
    @property
    def hints(self) -> bytes:
        """Hint records of WRONG_OWNER items back to back, as `wire.hints.decode_hints` takes."""
    @property
    def reply(self) -> bytes:
        """Body of the response of an exchange; the text of a request that failed as a whole."""
    def wait(self, deadline_ns: int) -> bool:
        """Wait without the GIL until done. False: not in time; the engine will report it.

        Handles signals: a raising handler leaves the job running.
        """
    def cancel(self) -> None:
        """End the job soon: off the queue, or by closing the lane that runs it (CLOSED)."""
