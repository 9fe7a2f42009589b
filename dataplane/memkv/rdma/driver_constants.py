"""Numbers of libibverbs' binary interface, which never change.

pyverbs has them too, but in a module whose name and contents differ between versions.
"""

from typing import Final

from memkv.rdma.verbs import Access, EventKind, GidType, LinkLayer

QP_RELIABLE: Final = 2
QP_STATE_ERROR: Final = 6
QP_MASK_STATE: Final = 1
SEND_SIGNALED: Final = 2
WINDOW_TYPE_2: Final = 2

WORK_WRITE: Final = 0
WORK_READ: Final = 4
WORK_INVALIDATE: Final = 7
WORK_BIND: Final = 8

PORT_ACTIVE: Final = 4
PORT_STATES: Final = ("unknown", "down", "initializing", "armed", "active", "active, deferred")
LINK_LAYERS: Final = {1: LinkLayer.INFINIBAND, 2: LinkLayer.ETHERNET}
GID_TYPES: Final = {0: GidType.INFINIBAND, 1: GidType.ROCE_V1, 2: GidType.ROCE_V2}

ACCESS_BITS: Final = {
    Access.LOCAL_WRITE: 1, Access.REMOTE_WRITE: 2, Access.REMOTE_READ: 4, Access.WINDOWS: 16,
}  # fmt: skip

STATUS_FLUSHED: Final = 5
STATUSES: Final = (
    "", "local length error", "local queue pair error", "local context error",
    "local protection error", "flushed", "memory window bind error", "bad response",
    "local access error", "remote invalid request", "remote access error",
    "remote operation error", "retries exceeded", "receiver-not-ready retries exceeded",
    "local domain violation", "remote invalid RD request", "remote abort",
    "invalid context number", "invalid context state", "fatal error", "response timeout",
    "general error",
)  # fmt: skip

EVENTS: Final = (
    ("CQ_ERR", EventKind.QUEUE_PAIR_BROKEN),  # a queue pair has a completion queue of its own
    ("QP_FATAL", EventKind.QUEUE_PAIR_BROKEN),
    ("QP_REQ_ERR", EventKind.QUEUE_PAIR_BROKEN),
    ("QP_ACCESS_ERR", EventKind.QUEUE_PAIR_BROKEN),
    ("COMM_EST", EventKind.OTHER),
    ("SQ_DRAINED", EventKind.OTHER),
    ("PATH_MIG", EventKind.OTHER),
    ("PATH_MIG_ERR", EventKind.OTHER),
    ("DEVICE_FATAL", EventKind.DEVICE_GONE),
    ("PORT_ACTIVE", EventKind.PORT_UP),
    ("PORT_ERR", EventKind.PORT_DOWN),
    ("LID_CHANGE", EventKind.GIDS_CHANGED),  # the address on InfiniBand
    ("PKEY_CHANGE", EventKind.OTHER),
    ("SM_CHANGE", EventKind.OTHER),
    ("SRQ_ERR", EventKind.OTHER),
    ("SRQ_LIMIT_REACHED", EventKind.OTHER),
    ("QP_LAST_WQE_REACHED", EventKind.OTHER),
    ("CLIENT_REREGISTER", EventKind.OTHER),
    ("GID_CHANGE", EventKind.GIDS_CHANGED),
    ("WQ_FATAL", EventKind.OTHER),
)


def access_bits(access: Access) -> int:
    """Access flags of a region, a window or a queue pair."""
    return sum(bit for flag, bit in ACCESS_BITS.items() if flag in access)


def status_text(status: int) -> str:
    """What a completion says of its work, for people; empty on success."""
    return STATUSES[status] if status < len(STATUSES) else f"status {status}"


def mtu_bytes(code: int) -> int:
    """1 to 5 are 256 to 4096."""
    return 128 << code


def mtu_code(size_bytes: int) -> int:
    """The largest MTU that fits, 256 at least."""
    return max(1, min(5, (size_bytes // 128).bit_length() - 1))
