"""What an NVMe drive says of its own health: log page 2, "SMART / Health Information"."""

import ctypes
import fcntl
import struct
from dataclasses import dataclass

_ADMIN_COMMAND = 0xC0484E41  # NVME_IOCTL_ADMIN_CMD
_GET_LOG_PAGE = 0x02
_HEALTH_PAGE = 0x02
_ALL_NAMESPACES = 0xFFFFFFFF
PAGE_BYTES = 512
_TIMEOUT_MS = 5000
# opcode, flags, rsvd1, nsid, cdw2, cdw3, metadata, addr, metadata_len, data_len, cdw10-15, timeout,
# result
_COMMAND = struct.Struct("<BBHIIIQQII6III")
_WARNINGS = (
    "spare blocks run out", "too hot or too cold", "unreliable: too many errors of the medium",
    "read-only", "its write cache has no backup any more", "its persistent memory is read-only",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Health:
    """Figures of a drive."""

    wear_percent: int
    """Of its rated life; may exceed 100."""
    media_errors: int
    warning: str = ""


def read_health(fd: int) -> Health:
    """Return what the NVMe drive of an open namespace says. OSError when it is no NVMe drive."""
    page = ctypes.create_string_buffer(PAGE_BYTES)
    dwords = PAGE_BYTES // 4 - 1
    command = bytearray(
        _COMMAND.pack(
            _GET_LOG_PAGE, 0, 0, _ALL_NAMESPACES, 0, 0, 0, ctypes.addressof(page), 0, PAGE_BYTES,
            _HEALTH_PAGE | dwords << 16, 0, 0, 0, 0, 0, _TIMEOUT_MS, 0,
        )
    )  # fmt: skip
    status = fcntl.ioctl(fd, _ADMIN_COMMAND, command)
    if status != 0:
        raise OSError(5, f"the drive refuses to tell its health (status {status:#x})")
    return parse_health(page.raw)


def parse_health(page: bytes) -> Health:
    """Return what the page says."""
    told = [text for bit, text in enumerate(_WARNINGS) if page[0] >> bit & 1]
    return Health(page[5], int.from_bytes(page[160:176], "little"), ", ".join(told))
