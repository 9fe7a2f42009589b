"""Keys as words of a shell: any bytes go in, nothing that steers a terminal comes out."""

import argparse
import os

import pytest

from memkv.cli import keys
from memkv.cli.settings import UsageError
from memkv.keys import block_id


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    keys.add_arguments(parser, many=True)
    return parser.parse_args(words)


def test_a_word_is_its_bytes_as_the_shell_gave_them() -> None:
    assert keys.keys_of(parsed("a", "ü", os.fsdecode(b"\xff\x00x".replace(b"\0", b"")))) == [
        b"a", "ü".encode(), b"\xffx",
    ]  # fmt: skip
    assert block_id(keys.keys_of(parsed("ü"))[0]) == block_id("ü"), "the same block as in Python"


def test_any_bytes_are_written_as_hexadecimal() -> None:
    assert keys.keys_of(parsed("--hex", "00ff17", "0a")) == [b"\x00\xff\x17", b"\n"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hex", "xyz"], "'xyz' is not hexadecimal"),
        (["--hex", "abc"], "is not hexadecimal"),
        (["x" * 513], "this one has 513"),
        ([""], "this one has 0"),
    ],
)
def test_what_cannot_be_a_key_is_named(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        keys.keys_of(parsed(*words))


def test_keys_are_shown_without_control_codes() -> None:
    assert keys.show(b"prompt/\xc3\xbc") == "prompt/ü"
    assert keys.show(b"a\x1b[2Jb\n\xff") == "a\\x1b[2Jb\\n\\xff"
    assert keys.document(b"plain") == {"key": "plain"}
    assert keys.document(b"\xff\x00") == {"key": "\\xff\\x00", "key_hex": "ff00"}
