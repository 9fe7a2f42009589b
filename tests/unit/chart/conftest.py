"""What the chart's tests need of this machine."""

import pytest

from memkv_operator.testing.promtool import find_promtool


@pytest.fixture(scope="session")
def promtool() -> str:
    """The path of promtool; skips where none can be had."""
    path, why_not = find_promtool()
    if not path:
        pytest.skip(why_not)
    return path
