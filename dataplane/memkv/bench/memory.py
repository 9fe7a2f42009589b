"""Memory to measure with."""

import mmap


def page_aligned(size_bytes: int) -> memoryview:
    """Return memory of zeros that begins on a page, as the buffers of engines do.

    Where a buffer begins can halve a measurement: AMD's Zen 3 copies with `rep movsb`, the kernel's
    way to and from sockets, at a tenth of its speed when the target begins 1 to 31 bytes after the
    source, both taken modulo 4096. The bytes of a bytearray begin 16 bytes after a page, those in a
    socket buffer often on one. All sides of a comparison therefore use this memory.
    """
    return memoryview(mmap.mmap(-1, size_bytes))
