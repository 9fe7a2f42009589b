"""From the room that tenants are promised to what one drive and its memory can keep.

Flash is given and taken in whole segments, so a quota is rounded up. Where all of them together do
not fit, each gets its part of what there is: a promise that cannot be kept must not end a worker.
"""

from collections.abc import Sequence

SEGMENTS_MIN = 2  # one is being filled, one is full: with less there is nothing to keep


def fitted_segments(wanted: Sequence[int], usable_bytes: int, segment_bytes: int) -> list[int]:
    """Return whole segments for each quota in bytes, in total no more than there are.

    A quota of 0 gets none, and so does one whose part is less than `SEGMENTS_MIN`.
    """
    usable = usable_bytes // segment_bytes
    segments = [max(SEGMENTS_MIN, -(-size // segment_bytes)) if size else 0 for size in wanted]
    if sum(segments) <= usable:
        return segments
    total = sum(wanted)
    parts = [usable * size // total for size in wanted]
    return [part if part >= SEGMENTS_MIN else 0 for part in parts]


def fitted_bytes(wanted: Sequence[int], usable_bytes: int) -> list[int]:
    """Return each quota, or its part of `usable_bytes` where all do not fit."""
    total = sum(wanted)
    if total <= usable_bytes:
        return list(wanted)
    return [max(0, usable_bytes) * size // total for size in wanted]
