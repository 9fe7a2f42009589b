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
    default_shown: str = ""
    """What help says instead of the default itself."""

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

    @property
    def default_text(self) -> str:
        """The default as one would write it; "" where nothing is the default."""
        default = self.default
        if self.default_shown or default in (None, "", ()) or isinstance(default, bool):
            return self.default_shown
        if isinstance(default, int) and self.parse is units.parse_size:
            return units.format_bytes(default).replace(" ", "")
        if isinstance(default, int) and self.parse is units.parse_duration_ms:
            return units.format_duration(default / 1000)
        if isinstance(default, int | float) and self.parse is units.parse_duration_s:
            return units.format_duration(default)
        return str(default)


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
CA = Field(
    "ca", units.parse_name, "", "CA of the pool, in PEM: a file, or in connection.json the text;"
    " without one there is no TLS", metavar="FILE", in_connection_file=True,
)  # fmt: skip
TOKEN_FILE = Field(
    "token_file", units.parse_name, "", "ServiceAccount token with audience memkv-metadata, which"
    " proves the client", metavar="FILE", in_connection_file=True,
)  # fmt: skip
TLS_CERT = Field(
    "tls_cert", units.parse_name, "", "certificate that proves the client, in PEM", metavar="FILE",
    in_connection_file=True,
)  # fmt: skip
TLS_KEY = Field(
    "tls_key", units.parse_name, "", "private key of the certificate, in PEM", metavar="FILE",
    in_connection_file=True,
)  # fmt: skip
PAYLOAD_ENCRYPTION = Field(
    "payload_encryption", units.parse_name, "TLS", "whether the pool's data ports speak TLS (with a"
    " CA): TLS or None", metavar="WHAT", in_connection_file=True,
)  # fmt: skip
CREDENTIALS = (CA, TOKEN_FILE, TLS_CERT, TLS_KEY, PAYLOAD_ENCRYPTION)
CONNECTION = (ENDPOINT, POOL, TENANT, DEADLINE, *CREDENTIALS)


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
            where = f"[{field.section}] {field.name}" if field.section else field.name
            origin = place.format(
                flag=field.flag, variable=field.variable, name=field.name, place=where
            )
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


def literal(path: Path) -> str:
    """Return a path for a template: its braces are its own."""
    return str(path).replace("{", "{{").replace("}", "}}")


def flag_source(given: Mapping[str, object]) -> Source:
    """Return the source of values given as flags, by the name of the variable."""
    return "{flag}", given


def environment_source(environment: Mapping[str, str]) -> Source:
    """Return the source of MEMKV_* variables; an empty variable counts as not set."""
    return "{variable}", {name: text for name, text in environment.items() if text}


def file_source(
    path: Path, fields: Iterable["Field[object]"], known: Iterable["Field[object]"]
) -> Source:
    """Read a TOML file for a command that has `fields`; `known` are those of all commands.

    One file serves every command: names of others are left alone, names of none are refused.
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
    own = {field.variable for field in fields}
    given = _flatten(document, path, list(known))
    mine = {name: value for name, value in given.items() if name in own}
    return f"{literal(path)}: {{place}}", mine


def _flatten(
    document: Mapping[str, object], path: Path, known: "list[Field[object]]"
) -> dict[str, object]:
    """Return values by the name of their variable."""
    tables: dict[str, dict[str, str]] = {"": {}}
    for field in known:
        tables.setdefault(field.section, {})[field.name] = field.variable
    texts: dict[str, object] = {}
    for name, value in document.items():
        if not isinstance(value, dict):
            texts[_variable(tables, "", name, path)] = _text(value)
            continue
        if name not in tables:
            raise UsageError(f"{path}: unknown table [{name}]{_nearest(name, tables)}")
        for inner, text in value.items():
            texts[_variable(tables, name, inner, path)] = _text(text)
    return texts


def _variable(
    tables: Mapping[str, Mapping[str, str]], section: str, name: str, path: Path
) -> str:
    """Return the variable of a name in the file. Raises UsageError for one that nobody reads."""
    if name in tables[section]:
        return tables[section][name]
    where = f"[{section}] {name}" if section else name
    hint = _nearest(name, tables[section])
    homes = [f"[{table}]" if table else "the top of the file" for table in tables
             if name in tables[table]]  # fmt: skip
    if homes:
        hint = f"; it belongs to {' or '.join(sorted(homes))}"
    raise UsageError(f"{path}: unknown name {where}{hint}")


def _text(value: object) -> object:
    return ",".join(str(item) for item in value) if isinstance(value, list) else value


def _nearest(name: str, known: Iterable[str]) -> str:
    close = nearest(name, known)
    return f"; did you mean {close}?" if close else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name that was probably meant, or nothing."""
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1)), "")


def connection_source(path: Path = CONNECTION_FILE) -> Source:
    """Read the file that a pod of a pool finds; without one the source is empty."""
    place = f"{literal(path)}: {{name}}"
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
