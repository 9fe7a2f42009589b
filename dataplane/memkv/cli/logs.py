"""Logging of the long-running commands: lines on stderr, UTC, machine readable enough for grep."""

import logging
import os
import time

from memkv.cli.settings import Field

LEVELS = ("debug", "info", "warning", "error")


def parse_level(text: str) -> str:
    """Return a level's name."""
    if text.lower() not in LEVELS:
        raise ValueError(f"{text!r} is none of {', '.join(LEVELS)}")
    return text.lower()


LOG_LEVEL: Field[str] = Field(
    "log_level", parse_level, "info", "least severe lines to log", metavar="LEVEL"
)


def start_logging(level: str) -> None:
    """Log to stderr from now on; processes that this one starts do so too."""
    os.environ[LOG_LEVEL.variable] = level
    formatter = logging.Formatter(
        "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
