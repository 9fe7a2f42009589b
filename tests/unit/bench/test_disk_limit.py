"""What is read from fio."""

import json

from memkv.bench.disk_limit import parse_gbps


def test_the_side_that_was_asked_for_is_read() -> None:
    job = {"read": {"bw_bytes": 1_500_000_000}, "write": {"bw_bytes": 2_700_000_000}}
    text = "fio: a warning before the document\n" + json.dumps({"jobs": [job]})
    assert parse_gbps(text, "randread") == 1.5
    assert parse_gbps(text, "randwrite") == 2.7
