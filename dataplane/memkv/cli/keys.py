"""Keys on the command line. A key is bytes: a word of the shell as it is, or --hex for any bytes.

What is printed is text with escapes, so that no key can write control codes to a terminal; JSON
also gets the bytes of a key that is not plain text.
"""

import argparse
import os

from memkv.cli.settings import UsageError
from memkv.limits import USER_KEY_BYTES_MAX


def add_arguments(
    parser: argparse.ArgumentParser, *, many: bool = False, needed: bool = True
) -> None:
    """Add KEY, or KEY... (of which there may be none unless `needed`), and --hex."""
    text = f"name of a block, 1 to {USER_KEY_BYTES_MAX} bytes"
    if many:
        parser.add_argument("keys", metavar="KEY", nargs="+" if needed else "*", help=text)
    else:
        parser.add_argument("key", metavar="KEY", help=text)
    add_hex(parser)


def add_hex(parser: argparse.ArgumentParser) -> None:
    """Add --hex alone."""
    parser.add_argument(
        "--hex", action="store_true", help="KEY is hexadecimal, as 00ff: for keys that are not text"
    )


def key_of(word: str, arguments: argparse.Namespace) -> bytes:
    """Return the bytes of a key. Raises UsageError for one that cannot be a key."""
    if arguments.hex:
        try:
            key = bytes.fromhex(word)
        except ValueError:
            raise UsageError(f"--hex: {word!r} is not hexadecimal, such as 00ff") from None
    else:
        key = os.fsencode(word)
    if not 1 <= len(key) <= USER_KEY_BYTES_MAX:
        raise UsageError(f"a key has 1 to {USER_KEY_BYTES_MAX} bytes; this one has {len(key)}")
    return key


def keys_of(arguments: argparse.Namespace) -> list[bytes]:
    """Return the bytes of KEY..."""
    return [key_of(word, arguments) for word in arguments.keys]


def is_text(key: bytes) -> bool:
    """Return whether a terminal shows the key as it is."""
    try:
        return key.decode().isprintable()
    except UnicodeDecodeError:
        return False


def show(key: bytes) -> str:
    """Return the key for a person: printable, bytes that are not text as \\xff."""
    text = key.decode(errors="backslashreplace")
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def document(key: bytes) -> dict[str, object]:
    """Return the key for JSON: `key`, and `key_hex` where `key` is not the key itself."""
    return {"key": show(key)} if is_text(key) else {"key": show(key), "key_hex": key.hex()}
