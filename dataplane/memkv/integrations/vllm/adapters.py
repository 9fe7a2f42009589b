"""LoRA adapters of an engine: what stands for their weights in the names of blocks.

vLLM puts an adapter's name and path into its block hashes. Neither says which weights lie there:
one path means others on another machine, and the same ones lie under many paths. So hashes of
requests with adapters are made anew, without the adapter, and its content is in the namespace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

from memkv.errors import CallerError
from memkv.integrations.keys import Adapter

if TYPE_CHECKING:
    from vllm.v1.request import Request

Hasher = Callable[["Request"], list[bytes]]
"""Returns hashes of the full blocks that lie behind those in `request.block_hashes`."""
Stamp = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class _Seen:
    """An adapter as it lay there when its first request came."""

    path: str
    stamp: Stamp
    adapter: Adapter


class Adapters:
    """Of one engine process. Used by its scheduler's thread."""

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}
        """By the engine's number of it, under which it keeps the weights that it has loaded."""

    def of(self, request: Request) -> Adapter | None:
        """Return what stands for a request's adapter, None without one. Its files are read once.

        Raises CallerError when it cannot be said which weights the engine has: the files cannot be
        read, or are others than when the first request came, and the engine need not have noticed.
        """
        lora = request.lora_request
        if lora is None:
            return None
        name, path = str(lora.lora_name), str(lora.lora_path)
        stamp = _stamp(name, path)
        seen = self._seen.get(lora.lora_int_id)
        if seen is None:
            seen = _Seen(path, stamp, _read(name, path, stamp))
            self._seen[lora.lora_int_id] = seen
        if (seen.path, seen.stamp) != (path, stamp):
            raise CallerError(
                f"the files of adapter {name} have changed since the engine's first request for "
                "it; load it under another name, or start the engine anew"
            )
        return seen.adapter


def _read(name: str, path: str, stamp: Stamp) -> Adapter:
    try:
        # Names of adapters are for users: the same content is the same under any.
        return Adapter.of_files("", [_folder(path) / file_name for file_name, _, _ in stamp])
    except OSError as error:
        raise _unreadable(name, path) from error


def _stamp(name: str, path: str) -> Stamp:
    """Return names, times and sizes of an adapter's files."""
    try:
        found = tuple(sorted((file.name, file.stat().st_mtime_ns, file.stat().st_size)
                             for file in _folder(path).iterdir() if file.is_file()))
    except OSError as error:
        raise _unreadable(name, path) from error
    if not found:
        raise _unreadable(name, path)
    return found


def _folder(path: str) -> Path:
    try:
        return Path(path).expanduser()  # as the engine does
    except RuntimeError:  # no such user
        return Path(path)


def _unreadable(name: str, path: str) -> CallerError:
    return CallerError(
        f"there is no folder with the files of adapter {name} at {path!r}; give the engine one, "
        "not a name on a hub"
    )


class HashesWithoutAdapter(Sequence[bytes]):
    """Block hashes of a request as if it had no adapter; they grow as the engine's own do."""

    def __init__(self, request: Request, hasher: Hasher) -> None:
        self._request = request
        self._plain = _WithoutAdapter(request)
        self._hasher = hasher
        self._theirs = b""
        """The engine's hash of the last block that is hashed here."""

    def __len__(self) -> int:
        return len(self._request.block_hashes)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        return self._hashes()[index]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._hashes())

    def _hashes(self) -> list[bytes]:
        theirs: Sequence[bytes] = self._request.block_hashes
        ours = self._plain.block_hashes
        if ours and (len(theirs) < len(ours) or theirs[len(ours) - 1] != self._theirs):
            ours.clear()  # a session went on otherwise than it had been
        if len(ours) < len(theirs):
            ours += self._hasher(self._plain)
            del ours[len(theirs) :]
            self._theirs = theirs[len(ours) - 1]
        return ours


class _WithoutAdapter:
    """A request for the engine's hasher."""

    lora_request = None

    def __init__(self, request: Request) -> None:
        self._request = request
        self.block_hashes: list[bytes] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._request, name)
