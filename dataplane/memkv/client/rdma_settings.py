"""What a client is told of RDMA: by MEMKV_RDMA* variables, and by a pod's connection file.

Each setting has one name in both: MEMKV_RDMA_GID_INDEX is `rdma_gid_index` of the file. A variable
goes before the file, one by one.
"""

from collections.abc import Mapping
from enum import Enum
from typing import TypeVar

from memkv.errors import CallerError
from memkv.rdma.client_memory import MemoryMode, RdmaOptions
from memkv.rdma.discovery import Fabric

RDMA_AUTO, RDMA_ON, RDMA_OFF = "auto", "on", "off"
Choice = TypeVar("Choice", bound=Enum)


class RdmaSettings:
    """The settings of one client. CallerError names the variable or file that is wrong."""

    def __init__(
        self, environment: Mapping[str, str], document: Mapping[str, object], place: str
    ) -> None:
        """`document`: of the connection file `place`; other keys of it are not looked at."""
        self._environment = environment
        self._document = document
        self._place = place

    @property
    def switch(self) -> str:
        """Whether to use RDMA: auto, on or off."""
        text, where = self._text("rdma")
        if text not in ("", RDMA_AUTO, RDMA_ON, RDMA_OFF):
            raise CallerError(f'{where} must be "auto", "on" or "off", not {text!r}')
        return text or RDMA_AUTO

    @property
    def options(self) -> RdmaOptions:
        """How to use it."""
        names, _ = self._text("rdma_devices")
        return RdmaOptions(
            self._choice("rdma_mode", MemoryMode.ARENA),
            tuple(name.strip() for name in names.split(",") if name.strip()),
            self._number("rdma_gid_index", -1),
            self._number("rdma_traffic_class", 0),
            self._choice("rdma_fabric", Fabric.AUTO),
        )

    def _text(self, name: str) -> tuple[str, str]:
        """Return (what is said, where); "" where nothing is."""
        variable = f"MEMKV_{name.upper()}"
        if said := self._environment.get(variable, ""):
            return said, variable
        value = self._document.get(name)
        if value is None:
            return "", variable
        where = f"{self._place}: {name}"
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise CallerError(f"{where} must be text or a number, not {value!r}")
        return str(value), where

    def _number(self, name: str, default: int) -> int:
        text, where = self._text(name)
        try:
            return int(text) if text else default
        except ValueError as error:
            raise CallerError(f"{where} must be a number, not {text!r}") from error

    def _choice(self, name: str, default: Choice) -> Choice:
        text, where = self._text(name)
        known: dict[str, Choice] = {str(one.value): one for one in type(default)}
        if text and text not in known:
            raise CallerError(f"{where} must be one of {', '.join(known)}, not {text!r}")
        return known[text] if text else default
