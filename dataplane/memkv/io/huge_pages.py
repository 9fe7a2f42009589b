"""Memory of huge pages, which the kernel keeps apart and hands to nobody else.

Ordinary memory may get huge pages as well, when the kernel finds some (MADV_HUGEPAGE). Those asked
for here were reserved by an administrator (vm.nr_hugepages): a mapping has all of its pages from
the start, or there is none.
"""

import errno
import mmap
from pathlib import Path

from memkv.errors import ConfigError
from memkv.limits import GIB, MIB

SIZES: dict[str, int] = {"none": 0, "2mi": 2 * MIB, "1gi": GIB}
"""What people may ask for, in lower case, as bytes of a page; 0: ordinary pages."""

MAP_HUGETLB = 0x40000  # the standard module names neither; values of every Linux machine we run on
MAP_HUGE_SHIFT = 26
MADV_POPULATE_WRITE = 23
POOLS = Path("/sys/kernel/mm/hugepages")


def parse_page_size(text: str) -> int:
    """Return the bytes of a huge page, 0 for ordinary ones. ValueError."""
    name = text.strip().lower().removesuffix("b")
    if name not in SIZES:
        raise ValueError(f"{text!r} is not a size of huge pages: say 2Mi, 1Gi or none")
    return SIZES[name]


def page_name(page_bytes: int) -> str:
    """Return a size of huge pages as people write it."""
    return {2 * MIB: "2Mi", GIB: "1Gi"}[page_bytes]


def whole_pages(size_bytes: int, page_bytes: int) -> int:
    """Return the bytes of the whole pages in `size_bytes`."""
    return size_bytes // page_bytes * page_bytes


def free_pages(page_bytes: int, pools: Path = POOLS) -> tuple[int, int] | None:
    """Return how many huge pages of a size are free, and how many there are; None: not known here.

    `pools`: where the kernel counts its huge pages.
    """
    pool = pools / f"hugepages-{page_bytes // 1024}kB"
    try:
        free, total = ((pool / f"{name}_hugepages").read_text() for name in ("free", "nr"))
        return int(free), int(total)
    except (OSError, ValueError):
        return None


def map_huge_pages(size_bytes: int, page_bytes: int, pools: Path = POOLS) -> mmap.mmap:
    """Return private memory of huge pages, all of them present; the caller closes it.

    `size_bytes` is a multiple of `page_bytes`. `pools`: where the kernel counts its huge pages.
    Raises ConfigError, with cause and fix, when there are not enough.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB
    flags |= (page_bytes.bit_length() - 1) << MAP_HUGE_SHIFT
    try:
        memory = mmap.mmap(-1, size_bytes, flags=flags)
    except OSError as error:
        raise ConfigError(_shortage(size_bytes, page_bytes, pools)) from error
    try:
        # A container's limit counts when a page is first touched, and would kill the process then.
        memory.madvise(MADV_POPULATE_WRITE)
    except OSError as error:
        if error.errno != errno.EINVAL:  # before Linux 5.14: not known
            memory.close()
            raise ConfigError(_limited(size_bytes, page_bytes)) from error
    return memory


def _shortage(size_bytes: int, page_bytes: int, pools: Path) -> str:
    name, wanted = page_name(page_bytes), size_bytes // page_bytes
    counted = free_pages(page_bytes, pools)
    if counted is None:
        return (
            f"this machine has no huge pages of {name}, and {wanted} are wanted: say another size, "
            f"or start the kernel with hugepagesz={name[:-1]} hugepages={wanted}"
        )
    free, total = counted
    file = pools / f"hugepages-{page_bytes // 1024}kB" / "nr_hugepages"
    setting = f"echo {total - free + wanted} > {file}"
    return (
        f"{wanted} huge pages of {name} are wanted, and {free} of {total} are free: reserve more "
        f"({setting}; on Kubernetes restart kubelet afterwards), lower the memory, or say "
        "--huge-pages none"
    )


def _limited(size_bytes: int, page_bytes: int) -> str:
    name = page_name(page_bytes)
    return (
        f"the machine has {size_bytes // page_bytes} free huge pages of {name}, and this process "
        f"may not have them all: raise its limit (in Kubernetes limits.hugepages-{name}), or lower "
        "the memory"
    )
