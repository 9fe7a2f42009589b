"""What recovery does with what it finds, as tables.

Segments. A header or trailer is ours when it can be read, its sum fits and it names this drive and
this segment; both carry the segment's identity, so one damaged end loses nothing. Facts: the header
is ours; the trailer is ours; it lists records and its identity is the header's, where that is ours;
the list's sum fits.

| case | header | trailer | lists | sum | action |
| @A   | no  | no  | -   | -   | ERASE: new drive, another's, or an erase was cut short |
| @B   | no  | yes | no  | -   | SCAN by the trailer: the header rots, it was being filled |
| @C   | no  | yes | yes | no  | SCAN by the trailer: both rot, or an erase was cut short |
| @D   | no  | yes | yes | yes | LOAD by the trailer: the header rots, or an erase was cut short |
| @E   | yes | no  | -   | -   | SCAN: the trailer was torn or rots |
| @F   | yes | yes | no  | -   | SCAN: was being filled, or an erase was cut short |
| @G   | yes | yes | yes | no  | SCAN: the list was torn or rots |
| @H   | yes | yes | yes | yes | LOAD |

The ends are overwritten only after all that must not be lost is durable elsewhere (reclaim.py), so
it does not matter which of two lives a cut-short erase shows: the old one is whole, the new one is
empty. A footer is written only after its records were flushed, so LOAD trusts it; SCAN trusts
nothing and sums every payload. Where an end cannot be read and the other one is not ours, the
segment may hold anything: it is RETIRED, and tombstones of all tenants are kept.

Records of a scan, by what `records.judge` says (`Flaw`, or the kind of a sound record):

| case | judged | action |
| @I | BLOCK | ADOPT |
| @J | TOMBSTONES | ADOPT |
| @K | HEADER | STEP: a lost write, or payload of one; look at the next sector |
| @L | GENERATION | STEP: of an earlier life, or forged inside a payload |
| @M | OFFSET | STEP: misdirected |
| @N | LENGTH | STEP: fields that fit nothing |
| @O | PAYLOAD | SKIP: torn; the place was this record's, nothing else is in it |
| @P | OTHER_BLOCK | STEP: cannot happen, a scan looks for no id |
"""

from enum import Enum
from typing import NamedTuple

from memkv.store.layout import Kind
from memkv.store.records import Flaw


class SegmentAction(Enum):
    """What becomes of a segment."""

    ERASE = "erase"
    SCAN = "scan"
    LOAD = "load"


class RecordAction(Enum):
    """What a scan does next."""

    ADOPT = "adopt"
    STEP = "step"
    SKIP = "skip"


class SegmentFacts(NamedTuple):
    """What was found for a segment; a fact that was not looked up is False."""

    header_ours: bool
    trailer_ours: bool
    trailer_lists: bool
    footer_fits: bool


class SegmentCase(NamedTuple):
    """One row; None matches both."""

    label: str
    facts: tuple[bool | None, ...]
    action: SegmentAction

    def matches(self, facts: SegmentFacts) -> bool:
        """Say whether the row is about these facts."""
        return all(
            want is None or want == have for want, have in zip(self.facts, facts, strict=True)
        )


_ERASE, _SCAN, _LOAD = SegmentAction.ERASE, SegmentAction.SCAN, SegmentAction.LOAD
SEGMENT_CASES = (
    SegmentCase("@A", (False, False, None, None), _ERASE),
    SegmentCase("@B", (False, True, False, None), _SCAN),
    SegmentCase("@C", (False, True, True, False), _SCAN),
    SegmentCase("@D", (False, True, True, True), _LOAD),
    SegmentCase("@E", (True, False, None, None), _SCAN),
    SegmentCase("@F", (True, True, False, None), _SCAN),
    SegmentCase("@G", (True, True, True, False), _SCAN),
    SegmentCase("@H", (True, True, True, True), _LOAD),
)

RECORD_CASES: dict[Kind | Flaw, RecordAction] = {
    Kind.BLOCK: RecordAction.ADOPT,
    Kind.TOMBSTONES: RecordAction.ADOPT,
    Flaw.HEADER: RecordAction.STEP,
    Flaw.GENERATION: RecordAction.STEP,
    Flaw.OFFSET: RecordAction.STEP,
    Flaw.LENGTH: RecordAction.STEP,
    Flaw.PAYLOAD: RecordAction.SKIP,
    Flaw.OTHER_BLOCK: RecordAction.STEP,
}


def segment_action(facts: SegmentFacts) -> SegmentAction:
    """Return the action of the one case that matches."""
    for case in SEGMENT_CASES:
        if case.matches(facts):
            return case.action
    raise AssertionError(f"no case for {facts}")
