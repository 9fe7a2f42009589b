"""Extra configuration of the vLLM connector: what means nothing is refused by name."""

from __future__ import annotations

import pytest

from memkv.errors import CallerError
from memkv.integrations.vllm.settings import Settings


def test_everything_has_a_default() -> None:
    assert Settings.of({}) == Settings()


def test_what_is_said_is_taken() -> None:
    settings = Settings.of({"endpoint": "127.0.0.1:7443", "store_share": 1, "report": True})
    assert (settings.endpoint, settings.store_share, settings.report) == ("127.0.0.1:7443", 1, True)


@pytest.mark.parametrize(("extra", "text"), [
    ({"endpiont": "x"}, "no 'endpiont'; known"),
    ({"deadline_ms": "100"}, "deadline_ms is '100', not of type int"),
    ({"deadline_ms": True}, "deadline_ms is True"),
    ({"deadline_ms": 0}, "at least 1"),
    ({"store_share": 1.5}, "a part of all blocks"),
    ({"report": 1}, "not of type bool"),
    ({"pipeline_layers": -1}, "pipeline_layers must not be negative"),
])
def test_what_means_nothing_is_refused(extra: dict[str, object], text: str) -> None:
    with pytest.raises(CallerError, match=text):
        Settings.of(extra)
