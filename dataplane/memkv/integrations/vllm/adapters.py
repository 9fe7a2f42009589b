"""LoRA adapters of an engine: what stands for their weights in the names of blocks.

vLLM puts an adapter's name and path into its block hashes. Neither says which weights lie there:
one path means others on another machine, and the same ones lie under many paths. So hashes of
requests with adapters are made anew, without the adapter, and its content is in the namespace.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, overload

from memkv.errors import CallerError
from memkv.integrations.keys import Adapter

if TYPE_CHECKING:
    from vllm.v1.request import Request

Hasher = Callable[["Request"], list[bytes]]
"""Returns hashes of the full blocks that lie behind those in `request.block_hashes`."""
Stamp = tuple[tuple[str, int, int], ...]

ADAPTER_WAIT_MS = 200  # reads 200 MB from a page cache; the scheduler does nothing else meanwhile


@dataclass(frozen=True)
class _Seen:
    """An adapter as it lay there when its first request came."""

    path: str
    stamp: Stamp
    adapter: Adapter


class Adapters:
    """Of one engine process. Used by its scheduler's thread, which waits for a look at an adapter's
    files no longer than `wait_ms`: they may be large, or far away."""

    def __init__(self, wait_ms: int = ADAPTER_WAIT_MS) -> None:
        self._wait_s = wait_ms / 1000
        self._looks: dict[int, _Look] = {}
        """Those that took too long, by the engine's number of the adapter."""
        self._seen: dict[int, _Seen] = {}
        """By the same number, under which the engine keeps the weights that it has loaded. There
        is one look at a time for each."""

    def of(self, request: Request) -> Adapter | None:
        """Return what stands for a request's adapter, None without one. Its files are read once.

        Raises CallerError when it cannot be said which weights the engine has: the files cannot be
        read, not in time, or are others than when the first request came, and the engine need not
        have noticed.
        """
        lora = request.lora_request
        if lora is None:
            return None
        number, name = int(lora.lora_int_id), str(lora.lora_name)
        late = self._looks.get(number)
        if late is not None and late.is_alive():
            raise _slow(name)
        self._looks.pop(number, None)
        look = _Look(partial(self._look, number, name, str(lora.lora_path)))
        look.start()
        look.join(self._wait_s)
        if look.is_alive():
            self._looks[number] = look
            raise _slow(name)
        return look.result()

    def _look(self, number: int, name: str, path: str) -> Adapter:
        stamp = _stamp(name, path)
        seen = self._seen.get(number)
        if seen is None:
            seen = _Seen(path, stamp, _read(name, path, stamp))
            self._seen[number] = seen
        if (seen.path, seen.stamp) != (path, stamp):
            raise CallerError(
                f"the files of adapter {name} have changed since the engine's first request for "
                "it; load it under another name, or start the engine anew"
            )
        return seen.adapter


class _Look(threading.Thread):
    """One look at an adapter's files. A daemon: files that never answer keep no engine alive."""

    def __init__(self, look: Callable[[], Adapter]) -> None:
        super().__init__(name="memkv-adapter", daemon=True)
        self._see = look
        self._found: Adapter | None = None
        self._error: CallerError | None = None

    def run(self) -> None:
        try:
            self._found = self._see()
        except CallerError as error:
            self._error = error

    def result(self) -> Adapter:
        """Return what was found, or raise why not: CallerError, for a bug too."""
        if self._found is None:
            raise self._error or CallerError("an adapter's files were not read; see the log")
        return self._found


def _slow(name: str) -> CallerError:
    return CallerError(f"the files of adapter {name} are still being read; it is shared after that")


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
