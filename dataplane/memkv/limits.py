"""Every limit has a name, a unit and a reason. Relations between them are asserted at import."""

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

# --- keys and blocks -------------------------------------------------------------------------
USER_KEY_BYTES_MAX = 512  # engines' keys are hashes or short paths; longer ones are a caller's bug
TENANT_SALT_BYTES_MAX = 64  # BLAKE2b takes keys of at most 64 bytes
TENANT_NAME_BYTES_MAX = 253  # a Kubernetes namespace or DNS name fits
BLOCK_ID_BYTES = 32
TENANT_TAG_BYTES = 16
ROOT_BYTES = 16
CHUNK_BYTES = 256 * KIB  # one checksum each: a range of a block checks little more than it reads
CHUNKS_PER_BLOCK_MAX = 64  # 64 sums of 8 bytes fit the 4 KiB record header
BLOCK_BYTES_MAX = CHUNK_BYTES * CHUNKS_PER_BLOCK_MAX  # 16 MiB
SLOTS_DEFAULT = 4096
SLOTS_MAX = 65536  # a slot is 16 bits in the index

# --- wire ------------------------------------------------------------------------------------
FRAME_HEADER_BYTES = 64
ITEMS_PER_FRAME_MAX = 1024  # one EXISTS of a 512k-token prompt in blocks of 512 tokens
RANGES_PER_ITEM_MAX = 256  # layers of the deepest models
FRAME_BODY_BYTES_MAX = 1 * MIB  # largest body: GET_RANGES of many items; bounds memory per session
HANDSHAKE_TIMEOUT_MS = 5_000  # a connection that says nothing is closed
SEND_STALL_MS = 10_000  # a client that stops reading holds a pool thread no longer than this
CONTROL_STALL_MS = 100  # the same for control connections and express lanes: few threads
UNSETTLED_CONNECTIONS_MAX = 1024  # in a handshake or inside a frame; more are closed at once
PARTIAL_FRAMES_BYTES_MAX = 32 * MIB  # bodies that have not fully arrived, all connections together
EXPRESS_INLINE_BYTES_MAX = 1 * MIB  # a longer GET on an express lane goes to the payload threads
LANE_THREADS_DEFAULT = 8  # payload requests served at once; a session gets at most half of them
CONTROL_THREADS = 2  # one may wait for a peer while the other goes on
LANES_PER_SESSION_MAX = 8  # 2 bulk, 1 express, 4 local and their registrar by default
SESSIONS_MAX = 4096  # control connections a worker keeps; a session is about 20 KiB of memory
POOL_NAME_BYTES_MAX = 320  # "namespace/name" of Kubernetes is at most 63 + 1 + 253
TICKET_BYTES_MAX = 4 * KIB  # names, salt and a signature take under 2 KiB
TICKET_KEYS_MAX = 16  # valid at once: an old one, a new one, and some that nobody took away yet
TICKET_RENEWAL_S_MIN = 60  # also where clocks differ so much that a new ticket looks old
TICKET_REFUSED_BACKOFF_MS_MAX = 15_000  # a thousand refused clients ask 70 times a second, then
TICKET_SUBJECT_BYTES_MAX = 512  # "system:serviceaccount:<namespace>:<name>" is at most 339
HOST_NAME_BYTES_MAX = 255  # DNS; its length is one byte of a hint record
ERROR_TEXT_BYTES_MAX = 512  # a sentence of cause and one of fix
STATISTICS_BYTES_MAX = 64 * KIB  # STAT's JSON is under 2 KiB; room for later fields
REQUEST_DEADLINE_MS_MAX = 60_000  # a node cuts longer deadlines: no request holds a thread longer
CREDIT_BYTES_PER_SESSION = 2 * GIB  # payload asked for and not yet answered: 128 largest blocks
BULK_PART_BYTES_MIN = 4 * MIB  # smaller parts cost more in round trips than a second lane gains
SMALL_PAYLOAD_BYTES_MAX = 64 * KIB  # goes over the express lane so that bulk never delays it
LOCAL_PARTS_PER_ITEM_MAX = 256  # pieces of shared memory of one block: layers of the deepest models
LOCAL_PATH_BYTES_MAX = 1 * KIB  # of the Unix socket that HELLO names; sane directories are shorter
LOCAL_FDS_PER_READ_MAX = 4  # passed with one message: one is wanted, what is over is closed
LOCAL_REGIONS_PER_SESSION_MAX = 256  # an engine shares one arena, or a tensor for each layer
LOCAL_REGIONS_MAX = 4096  # of one worker: each keeps a file descriptor open
LOCAL_MAPPED_BYTES_PER_SESSION_MAX = 64 * GIB  # page tables of so much are 128 MiB
LOCAL_MAPPED_BYTES_MAX = 256 * GIB  # of one worker
RDMA_DEVICES_MAX = 16  # of one client; a GPU server has 8 NICs, rarely 10
RDMA_QUEUE_PAIRS_PER_SESSION_MAX = LANES_PER_SESSION_MAX  # one a lane
RDMA_QUEUE_PAIRS_MAX = 4096  # of one worker; NICs have 100,000s, but some of their memory each
RDMA_REGIONS_PER_SESSION_MAX = 2048  # an engine's tensors, each as all of its devices have it
RDMA_DEPTH = 64  # requests in flight of one queue pair: 32 MiB in pieces of 512 KiB
RDMA_IN_FLIGHT_FRACTION = 0.25  # of DRAM held by writes under way, so that reads find some
RDMA_POLL_NS = 20_000  # a completion that is near is awaited awake; then the thread sleeps
RDMA_REFRESH_MS = 5_000  # between looks at ports that say nothing; a look is some system calls
RDMA_SLOW_CONNECT_MS = 20  # a connect that fails sooner did not wait for an address
RDMA_UNREACHABLE_MS = 5_000  # between tries to connect to an address that nobody has
RDMA_MEMORY_PROBE_BYTES = 64 * MIB  # registered by `memkv doctor`: more than the usual 8 MiB allow

# --- ports -----------------------------------------------------------------------------------
HTTP_PORT_DEFAULT = 9471  # plain HTTP of every role: one number to scrape, a role a machine or pod

# --- store -----------------------------------------------------------------------------------
SECTOR_BYTES = 4 * KIB  # O_DIRECT alignment and the size of a record header
SEGMENT_BYTES_MAX = 256 * MIB
SEGMENTS_PER_STORE_MIN = 64  # segment = min(256 MiB, capacity / 64)
SPARE_SEGMENTS = 2  # one being opened, one for re-appends while reclaim runs
PREFETCH_QUEUE_MAX = 1024  # blocks asked for and not yet read: one frame's worth
PREFETCH_MEMORY_FRACTION = 0.25  # of DRAM, for what is queued; more would push itself out
PREFETCH_ROOM_FRACTION_MIN = 0.5  # of DRAM that gets can still use; with less it reads nothing
PREFETCH_READS_MAX = 4  # in flight at once; one while gets read flash
PREFETCH_YIELD_MS = 5  # how long it waits for gets that read flash, before each of its reads
PREFETCH_AGE_MS = 10_000  # what was asked for longer ago comes too late
FEED_EVENTS_MAX = 8192  # kept for watchers of one tenant: 256 KiB, seconds of a busy worker
FEEDS_MAX = 64  # tenants that are watched at once on one worker: 16 MiB
FEED_IDLE_MS = 30_000  # without a question; then events are no longer kept
FEED_PAGE_MAX = 4096  # events of one answer, and handles that a page of a snapshot looks at
GHOSTS_MAX = 65_536  # blocks whose reason for leaving is remembered: 10 MiB of Python objects
LEASE_MS_MAX = 60_000  # between an engine's lookup and its load; whoever needs more pins
REAPPEND_FRACTION_MAX = 0.30  # of host writes: bounds write amplification at 1.3
PINNED_FRACTION_MAX = REAPPEND_FRACTION_MAX / (1 + REAPPEND_FRACTION_MAX)
"""Of a tenant's quota, 23%: pins must never stop eviction. What is pinned is written again once in
each turn of the log, while the rest of it takes new blocks: so much stays within 30% of these."""
assert PINNED_FRACTION_MAX <= 0.25
WORKER_MEMORY_BYTES_DEFAULT = 256 * MIB  # 128 blocks of 2 MiB: all I/O in flight, some hot ones
# io_uring registers a worker's memory whole, which locks it: the kernel counts it against the
# user's RLIMIT_MEMLOCK unless the process has CAP_IPC_LOCK. Without, reads cost more CPU.
MEMLOCK_BYTES_WANTED = WORKER_MEMORY_BYTES_DEFAULT
DEVICE_QUEUE_DEPTH = 32  # fio's bandwidth is flat above 16 on the drives tried
DEVICE_LOCK_WAIT_MS = 5_000  # a killed process leaves the lock when its last I/O has ended
DRIVE_HEALTH_INTERVAL_MS = 60_000  # wear takes months; each question costs the controller a command
DEVICE_LOCK_POLL_MS = 10  # between looks at a lock whose holder is gone

# --- shard map -------------------------------------------------------------------------------
WORKERS_MAX = 4096  # a u16 index could name more; this bounds a map at about 0.6 MiB
PREVIOUS_OWNERS_MAX = 3  # extra reads a miss on a moving slot may cost
LOAD_CAP = 1.10  # a worker's slots over its fair share; lower moves more slots when workers change
MAP_BYTES_MAX = 4 * MIB  # gRPC's default message limit; bounds what a lying server can make us hold
MAX_MOVING_SLOTS_PERCENT_DEFAULT = 20  # bounds the copy traffic of a changed pool
MOVE_TIMEOUT_S = 3_600  # previous owners retire after this even if their blocks were not copied
MASS_LOSS_PERCENT = 30  # more nodes gone at once are a broken network, not broken nodes
WORKER_RESTART_MS = 3_400  # the longest measured from kill -9 to serving, two busy cores
# Longer than a restart, even where the drive's lock is waited for. Until then the worker's keys
# miss. Called lost too soon, it would lose what it holds: slots that move away and home again bring
# copies that evict it.
WORKER_LOSS_GRACE_MS = 10_000
BOOKMARK_INTERVAL_MS = 20_000  # a watch that says nothing for three of these is dead
BOOKMARKS_MISSED_MAX = 3
FACTS_POLL_INTERVAL_MS = 500
WATCHERS_MAX = 16_384  # streams of one metadata process, at about 10 KiB each
OWNER_TRAIL_MAX = 8  # past owners remembered for a slot; one that fell out drops what it had
STATE_BYTES_MAX = 16 * MIB  # full trails of 65536 slots as JSON take 5 MiB
DROP_TENANT_WAIT_MS = 30_000  # for a worker that does not answer until it counts as lost
NODE_WEIGHT_MIN, NODE_WEIGHT_MAX = 1e-3, 1e3  # times any capacity a number that a map can hold
WORKERS_PER_NODE_MAX = 64  # a worker per drive; a storage server has at most a few dozen
WORKER_REPORT_INTERVAL_MS = 250  # facts are at most this old when a publisher polls
TAKEOVER_RETRY_MS_MIN = 20  # a previous owner often gets the map a moment later
TAKEOVER_RETRY_MS_MAX = 500  # one that is down becomes lost after the grace
PEER_TIMEOUT_MS = 5_000  # one answer of another worker; a batch of PULL_BATCH_BYTES takes far less
PULL_BYTES_PER_S_MAX = 256 * MIB  # a fifth of 1 TB in 13 minutes, well within MOVE_TIMEOUT_S
PULL_BYTES_PER_S_BUSY = 64 * MIB  # while clients are served: a few percent of a drive
PULL_YIELDS_AT_BYTES_PER_S = 16 * MIB  # of clients' payload; less than that nobody waits for
PULL_BATCH_BYTES = 8 * MIB  # how long a pull holds a thread of the peer, and how soon it can stop
PULL_ITEMS_MAX = 64  # of the largest blocks they are half a session's credit
PULL_MEMORY_WAIT_MS = 50  # for a buffer; then the block is tried again later
PULL_RETRY_MS_MIN = 250
PULL_RETRY_MS_MAX = 10_000  # a peer that is back is noticed within this
CONFIRM_PEERS_MAX = 8  # asked at a start for a newer map; every live worker knows of one soon
HEARD_SLOTS_AT_ONCE = 64  # written down and opened together, for each write is a flush
WORKER_STOP_TIMEOUT_S = 35  # a worker closes its store within 30 s; then it is killed
WORKER_BACKOFF_MS_MIN = 100
WORKER_BACKOFF_MS_MAX = 10_000  # a drive that was put back serves again within this
WORKER_STABLE_S = 30  # a worker that ran so long starts again at once
GO_AWAY_SPREAD_MS = 500  # watchers of a stopping server leave within this, not all at once

# --- deadlines -------------------------------------------------------------------------------
DEADLINE_MS_DEFAULT = 2_000
FENCE_BUDGET_MS = 250  # after a deadline, for closing a lane and taking its buffer back
MAP_BOOTSTRAP_TIMEOUT_MS = 2_000  # a model's start never waits longer for the first map
MAP_FALLBACK_MS = 500  # then a client without an answer goes by the map of its last run
COPY_QUEUE_BYTES_MAX = 64 * MIB  # a few of the largest blocks; the owner pulls the rest itself
BREAKER_FAILURES = 3  # consecutive failures of a worker before calls stop trying it
METADATA_CONNECT_MS_MIN = 250  # a Service may lead to a pod on a dead node, and next to another one
RECONNECT_BACKOFF_MS_MIN = 100
RECONNECT_BACKOFF_MS_MAX = 2_000  # re-attach stays under 5 s after a node is back

# --- integrations ----------------------------------------------------------------------------
BLOCK_HEADER_BYTES = SECTOR_BYTES  # behind a page, payload can be read by O_DIRECT into its place
NAMESPACE_BYTES_MAX = 2 * KIB  # lies in that page; names of models are tens of bytes
HEADER_FORMATS_MAX = 256  # whose page stays in memory: base model, adapters, salts of one engine
BLOCK_STREAMS_MAX = 16  # of one gateway, a thread each; routers are few
REASON_REQUESTS_MAX = 4096  # whose reasons an integration keeps: more than an engine runs at once
HEADER_PAGES = 1024  # of blocks on their way at once in one integration; 4 MiB
WINDOW_BYTES = 64 * MIB  # of a load or store in one request: at 1 GB/s a thirtieth of a deadline
WINDOW_BLOCKS = 128
WINDOWS_IN_FLIGHT = 2  # of one load or store: one is under way while results are taken
STORE_BACKLOG_BYTES_DEFAULT = 4 * GIB  # of the engine's own memory, held until it is stored
LOAD_DEADLINE_MS_DEFAULT = 10_000  # LMCache waits as long for its remote backends
EXPLAINED_MISSES_MAX = 8  # of one lookup or load: a prompt's first misses tell of the others
COMPLAINT_INTERVAL_MS = 60_000  # between log lines that say the same

# --- traces ----------------------------------------------------------------------------------
TRACE_LINE_BYTES_MAX = 1 * MIB  # a request of 100,000 blocks; a file without newlines is refused

assert BLOCK_BYTES_MAX == 16 * MIB
assert CHUNK_BYTES % SECTOR_BYTES == 0
assert FEED_PAGE_MAX * 32 + 24 <= FRAME_BODY_BYTES_MAX
assert FEED_PAGE_MAX <= FEED_EVENTS_MAX
assert SEGMENT_BYTES_MAX % SECTOR_BYTES == 0
assert ITEMS_PER_FRAME_MAX * 48 <= FRAME_BODY_BYTES_MAX
assert SMALL_PAYLOAD_BYTES_MAX <= CHUNK_BYTES
assert WORKERS_MAX < 0xFFFF  # the largest u16 means unassigned
assert WORKER_LOSS_GRACE_MS >= 3 * FACTS_POLL_INTERVAL_MS  # one lost poll never moves a slot
assert WORKER_LOSS_GRACE_MS >= DEVICE_LOCK_WAIT_MS + WORKER_RESTART_MS  # nor does a restart
assert DROP_TENANT_WAIT_MS > 2 * WORKER_LOSS_GRACE_MS
assert MAP_FALLBACK_MS < MAP_BOOTSTRAP_TIMEOUT_MS
assert LOCAL_REGIONS_PER_SESSION_MAX < LOCAL_REGIONS_MAX  # no session can have them all
assert LOCAL_MAPPED_BYTES_PER_SESSION_MAX < LOCAL_MAPPED_BYTES_MAX
assert NAMESPACE_BYTES_MAX < BLOCK_HEADER_BYTES
assert 2 * WINDOWS_IN_FLIGHT * WINDOW_BLOCKS <= HEADER_PAGES  # no work takes all of the pages
assert PULL_ITEMS_MAX * BLOCK_BYTES_MAX <= CREDIT_BYTES_PER_SESSION
