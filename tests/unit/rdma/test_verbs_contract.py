"""The fake devices keep the contract that real drivers are held to."""

import pytest

from memkv.testing.verbs_contract import CASES, STRICT_CASES, Case
from memkv.testing.verbs_ends import Ends


@pytest.mark.parametrize("case", [*CASES, *STRICT_CASES], ids=lambda case: case.__name__)
def test_contract(ends: Ends, case: Case) -> None:
    ends.server.memory.fill(b"\0")
    case(ends)
