"""JSON values as types, and a reader that names the field that is not as expected."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeGuard, TypeVar

from memkv.errors import ConfigError

JsonValue: TypeAlias = (
    bool | int | float | str | Sequence["JsonValue"] | Mapping[str, "JsonValue"] | None
)
JsonObject: TypeAlias = Mapping[str, JsonValue]
Manifest: TypeAlias = dict[str, JsonValue]

T = TypeVar("T")


class FieldInvalid(ConfigError):
    """A field is not what this version understands. The message names it."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads one JSON object. FieldInvalid for what has another type."""

    value: JsonObject
    path: str = ""

    def text(self, name: str, default: str = "") -> str:
        """Return a string."""
        return self._field(name, str, default)

    def integer(self, name: str, default: int = 0) -> int:
        """Return a whole number."""
        return self._field(name, int, default)

    def flag(self, name: str, default: bool = False) -> bool:
        """Return true or false."""
        return self._field(name, bool, default)

    def amount(self, name: str, default: int | str = 0) -> int | str:
        """Return a number or text: what Kubernetes calls int-or-string."""
        found = self.value.get(name, default)
        if isinstance(found, bool) or not isinstance(found, int | str):
            raise FieldInvalid(f"{self.place(name)} is neither a number nor text")
        return found

    def has(self, name: str) -> bool:
        """Return whether the field is there."""
        return self.value.get(name) is not None

    def object(self, name: str) -> "Reader":
        """Return a nested object; an empty one where there is none."""
        found = self.value.get(name)
        if found is None:
            found = {}
        if not isinstance(found, Mapping):
            raise FieldInvalid(f"{self.place(name)} is not an object")
        return Reader(found, self.place(name))

    def objects(self, name: str) -> list["Reader"]:
        """Return a list of objects."""
        return [
            Reader(item, f"{self.place(name)}[{index}]")
            for index, item in enumerate(self._list(name))
            if self._is_object(item, f"{name}[{index}]")
        ]

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of strings."""
        found = self._list(name)
        if not all(isinstance(item, str) for item in found):
            raise FieldInvalid(f"{self.place(name)} holds something else than text")
        return tuple(str(item) for item in found)

    def text_map(self, name: str) -> dict[str, str]:
        """Return an object whose values are all text."""
        found = self.object(name).value
        if not all(isinstance(item, str) for item in found.values()):
            raise FieldInvalid(f"{self.place(name)} holds something else than text")
        return {key: str(item) for key, item in found.items()}

    def raw_list(self, name: str) -> list[JsonValue]:
        """Return a list as it is, for what is only passed on."""
        return list(self._list(name))

    def place(self, name: str) -> str:
        """Return the field's full name."""
        return f"{self.path}.{name}" if self.path else name

    def _field(self, name: str, kind: type[T], default: T) -> T:
        found = self.value.get(name)
        if found is None:
            return default
        if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
            raise FieldInvalid(f"{self.place(name)} is {found!r}, not of type {kind.__name__}")
        return found

    def _list(self, name: str) -> Sequence[JsonValue]:
        found = self.value.get(name)
        if found is None:
            return ()
        if isinstance(found, str) or not isinstance(found, Sequence):
            raise FieldInvalid(f"{self.place(name)} is not a list")
        return found

    def _is_object(self, item: JsonValue, name: str) -> TypeGuard[JsonObject]:
        if not isinstance(item, Mapping):
            raise FieldInvalid(f"{self.place(name)} is not an object")
        return True
