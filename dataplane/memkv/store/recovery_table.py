"""What recovery does with what it finds, as tables.

Segments. Facts: the header is whole (its sum fits) and ours (this drive, this segment number); the
trailer is whole and matches the header's sequence and nonce; the footer's sum fits.

| case | header whole | ours | trailer whole | matches | footer fits | action |
| @A   | no  | -   | -   | -   | -   | ERASE: new drive, or an erase was cut short |
| @B   | yes | no  | -   | -   | -   | ERASE: another drive's or an earlier format's |
| @C   | yes | yes | no  | -   | -   | SCAN: was being filled |
| @D   | yes | yes | yes | no  | -   | SCAN: the trailer is of an earlier life |
| @E   | yes | yes | yes | yes | no  | SCAN: the footer was torn or rots |
| @F   | yes | yes | yes | yes | yes | LOAD |

A header is overwritten only after all it must not lose is durable elsewhere (reclaim.py), so ERASE
loses nothing that counts. A footer is written only after its records were flushed, so LOAD trusts
it; SCAN trusts nothing and sums every payload.

Records of a scan, by what `records.judge` says (`Flaw`, or the kind of a sound record):

| case | judged | action |
| @G | BLOCK | ADOPT |
| @H | TOMBSTONES | ADOPT |
| @I | HEADER | STEP: a lost write, or payload of one; look at the next sector |
| @J | GENERATION | STEP: of an earlier life, or forged inside a payload |
| @K | OFFSET | STEP: misdirected |
| @L | LENGTH | STEP: fields that fit nothing |
| @M | PAYLOAD | SKIP: torn; the place was this record's, nothing else is in it |
| @N | OTHER_BLOCK | STEP: cannot happen, a scan looks for no id |
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

    header_whole: bool
    header_ours: bool
    trailer_whole: bool
    trailer_matches: bool
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
    SegmentCase("@A", (False, None, None, None, None), _ERASE),
    SegmentCase("@B", (True, False, None, None, None), _ERASE),
    SegmentCase("@C", (True, True, False, None, None), _SCAN),
    SegmentCase("@D", (True, True, True, False, None), _SCAN),
    SegmentCase("@E", (True, True, True, True, False), _SCAN),
    SegmentCase("@F", (True, True, True, True, True), _LOAD),
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
