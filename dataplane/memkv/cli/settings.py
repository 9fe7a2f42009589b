"""Where a value comes from: flag, then MEMKV_* variable, then a TOML file, then the pod's file.

A field is declared once and gets all four. `memkv node --data-port` is also
MEMKV_NODE_DATA_PORT, and `data_port` in the table [node] of the file. A value that does not parse
is refused with the place it came from.
"""

import difflib
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar, cast

from memkv.cli import units
from memkv.errors import CallerError
from memkv.limits import DEADLINE_MS_DEFAULT

CONNECTION_FILE = Path("/etc/memkv/connection.json")
CONFIG_VARIABLE = "MEMKV_CONFIG"

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class UsageError(CallerError):
    """A flag, variable or file says something wrong. The message names place, cause and fix."""


@dataclass(frozen=True, slots=True)
class Field(Generic[T_co]):
    """One configurable value. `section` is the table of the file; "" is its top."""

    name: str
    parse: Callable[[str], T_co]
    default: T_co
    help: str
    section: str = ""
    metavar: str = ""
    in_connection_file: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "_".join(part for part in ("MEMKV", self.section, self.name) if part).upper()

    @property
    def is_switch(self) -> bool:
        """A switch takes no value on the command line."""
        return isinstance(self.default, bool)


ENDPOINT = Field(
    "endpoint", units.parse_endpoint, "127.0.0.1:7443", "metadata service",
    metavar="HOST:PORT", in_connection_file=True,
)  # fmt: skip
POOL = Field(
    "pool", units.parse_name, "default/local", "pool", metavar="NAMESPACE/NAME",
    in_connection_file=True,
)  # fmt: skip
TENANT = Field(
    "tenant", units.parse_name, "default", "tenant whose blocks are meant", metavar="NAME",
    in_connection_file=True,
)  # fmt: skip
DEADLINE = Field(
    "deadline", units.parse_duration_ms, DEADLINE_MS_DEFAULT,
    "time one call may take, such as 500ms or 2s", metavar="TIME", in_connection_file=True,
)  # fmt: skip
CONNECTION = (ENDPOINT, POOL, TENANT, DEADLINE)


@dataclass(frozen=True, slots=True)
class Settings:
    """Resolved values and where each came from."""

    values: Mapping[str, object]
    origins: Mapping[str, str]

    def __getitem__(self, field: Field[T]) -> T:
        return cast(T, self.values[field.variable])

    def origin(self, field: Field[T]) -> str:
        """Return the place that decided, for messages: a flag, a variable, a file or default."""
        return self.origins[field.variable]

    def is_default(self, field: Field[T]) -> bool:
        """Return whether nobody said anything about this value."""
        return self.origin(field) == DEFAULT_ORIGIN


DEFAULT_ORIGIN = "default"
Source = tuple[str, Mapping[str, object]]
"""(place, texts by the name of the variable)."""


def resolve(fields: Iterable["Field[object]"], sources: Iterable[Source]) -> Settings:
    """Take each field from the first source that has it. Raises UsageError for a bad value."""
    known = list(sources)
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    for field in fields:
        values[field.variable], origins[field.variable] = field.default, DEFAULT_ORIGIN
        for place, texts in known:
            if texts.get(field.variable) is None:
                continue
            origin = place.format(flag=field.flag, variable=field.variable, name=field.name)
            values[field.variable] = _parse(field, texts[field.variable], origin)
            origins[field.variable] = origin
            break
    return Settings(values, origins)


def _parse(field: "Field[object]", value: object, origin: str) -> object:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    try:
        return field.parse(text)
    except ValueError as error:
        raise UsageError(f"{origin}: {error}") from None


def flag_source(given: Mapping[str, object]) -> Source:
    """Return the source of values given as flags, by the name of the variable."""
    return "{flag}", given


def environment_source(environment: Mapping[str, str]) -> Source:
    """Return the source of MEMKV_* variables; an empty variable counts as not set."""
    return "{variable}", {name: text for name, text in environment.items() if text}


def file_source(path: Path, fields: Iterable["Field[object]"], sections: Iterable[str]) -> Source:
    """Read a TOML file. Tables of other commands are left alone; unknown names are refused.

    Raises UsageError naming the file, the line or the name, and the nearest right name.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; --config names a TOML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not TOML: {error}") from None
    return f"{path}: {{name}}", _flatten(document, path, list(fields), set(sections))


def _flatten(
    document: Mapping[str, object], path: Path, fields: "list[Field[object]]", sections: set[str]
) -> dict[str, object]:
    by_place = {(field.section, field.name): field.variable for field in fields}
    # What other commands read at the top of the file is known too.
    top = {field.name for field in CONNECTION}
    texts: dict[str, object] = {}
    for name, value in document.items():
        if isinstance(value, dict):
            if name not in sections:
                raise UsageError(f"{path}: unknown table [{name}]{_nearest(name, sections)}")
            for inner, text in value.items():
                _take(texts, by_place, (name, inner), text, path)
        elif name in top and ("", name) not in by_place:
            continue
        else:
            _take(texts, by_place, ("", name), value, path)
    return texts


def _take(
    texts: dict[str, object], by_place: Mapping[tuple[str, str], str], place: tuple[str, str],
    value: object, path: Path,
) -> None:  # fmt: skip
    section, name = place
    own = {field_name for field_section, field_name in by_place if field_section == section}
    if section and not own:
        return  # a table of another command
    if place not in by_place:
        where = f"[{section}] {name}" if section else name
        raise UsageError(f"{path}: unknown name {where}{_nearest(name, own)}")
    if isinstance(value, list):
        value = ",".join(str(item) for item in value)
    texts[by_place[place]] = value


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def connection_source(path: Path = CONNECTION_FILE) -> Source:
    """Read the file that a pod of a pool finds; without one the source is empty."""
    place = f"{path}: {{name}}"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return place, {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}; is it mounted whole?") from None
    if not isinstance(document, dict):
        raise UsageError(f"{path}: a JSON object is expected")
    names = {field.name: field.variable for field in CONNECTION if field.in_connection_file}
    return place, {names[name]: value for name, value in document.items() if name in names}
