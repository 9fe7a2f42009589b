"""LMCache's remote connector over a MemKV pool: LMCache inside an engine (LMCache 0.5.6).

    remote_storage_plugins: ["memkv"]
    extra_config:
      remote_storage_plugin.memkv.module_path: memkv.integrations.lmcache_remote
      remote_storage_plugin.memkv.class_name: MemKVConnectorAdapter
      remote_storage_plugin.memkv.endpoint: 127.0.0.1:7443

docs/lmcache.md says what to expect. Imported by LMCache alone: it needs LMCache to be there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from lmcache.v1.exceptions import IrrecoverableException
from lmcache.v1.memory_management import MemoryFormat
from lmcache.v1.storage_backend.connector import ConnectorAdapter
from lmcache.v1.storage_backend.connector.base_connector import RemoteConnector

from memkv.errors import CallerError
from memkv.integrations.blocks import BlockFormat
from memkv.integrations.lmcache_names import ChunkNames, EngineKey, Metadata, hashing_name
from memkv.integrations.parts import Part
from memkv.integrations.settings import SETTING_NAMES, PoolSettings, refuse_unknown
from memkv.integrations.stores import Stored
from memkv.integrations.transfers import Transfers, Waited

if TYPE_CHECKING:
    class Memory(Protocol):
        """`lmcache.v1.memory_management.MemoryObj`."""

        @property
        def data_ptr(self) -> int: ...
        def get_size(self) -> int: ...
        def get_shape(self) -> Sequence[int]: ...
        def ref_count_up(self) -> None: ...
        def ref_count_down(self) -> None: ...

    class Allocator(Protocol):
        """`LocalCPUBackend`."""

        def allocate(self, shapes: object, dtypes: object, fmt: object) -> Memory | None: ...

    class Config(Protocol):
        """`LMCacheEngineConfig`."""

        extra_config: Mapping[str, object] | None
        pre_caching_hash_algorithm: str
        remote_serde: str
        use_layerwise: bool
        enable_blending: bool

    class Context(Protocol):
        """`ConnectorContext`."""

        loop: asyncio.AbstractEventLoop
        local_cpu_backend: Allocator
        config: Config
        metadata: Metadata
        plugin_name: str | None


log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")
Hits = list[bool]
Blocks = list[BlockFormat | None]
Outcomes = list[Stored]
Memories = list["Memory | None"]  # the connector's own `list` hides the type
PREFIX = "remote_storage_plugin"
LOADER_NAMES = frozenset({"module_path", "class_name"})
PING_FAILED = 1


class MemKVConnectorAdapter(ConnectorAdapter):  # type: ignore[misc]  # LMCache has no types here
    """Makes the connector of `plugin://memkv`."""

    def __init__(self) -> None:
        super().__init__("plugin://memkv")

    def create_connector(self, context: Context) -> MemKVRemoteConnector:
        """Return a connector; IrrecoverableException for a configuration that cannot work, which
        stops the engine at its start instead of missing for ever."""
        try:
            settings = settings_of(context.config, context.plugin_name or "memkv")
        except CallerError as error:
            raise IrrecoverableException(str(error)) from error
        return MemKVRemoteConnector(
            context.loop, context.local_cpu_backend, context.config, context.metadata, settings
        )


def settings_of(config: Config, plugin: str) -> PoolSettings:
    """Take `remote_storage_plugin.PLUGIN.*` from the extra config."""
    where = f"extra_config {PREFIX}.{plugin}.*"
    if config.remote_serde != "naive":
        raise CallerError(
            f"remote_serde is {config.remote_serde!r}; MemKV stores chunks as they are: use naive"
        )
    start = f"{PREFIX}.{plugin}."
    values = {
        name.removeprefix(start): value for name, value in (config.extra_config or {}).items()
        if name.startswith(start)
    }
    refuse_unknown(values, SETTING_NAMES | LOADER_NAMES, where)
    return PoolSettings.of(values, where)


class MemKVRemoteConnector(RemoteConnector):  # type: ignore[misc]  # untyped
    """Chunks in a pool. Called on LMCache's event loop, which never waits here.

    LMCache counts the references of what it puts itself (InstrumentedRemoteConnector). This one
    holds another, until the pool has read the memory: a put whose task was cancelled goes on.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, local_cpu_backend: Allocator, config: Config,
        metadata: Metadata, settings: PoolSettings,
    ) -> None:
        super().__init__(config, metadata)
        self._loop = loop
        self._allocator = local_cpu_backend
        self._settings = settings
        self._names = ChunkNames(
            settings, metadata, hashing_name(config.pre_caching_hash_algorithm)
        )
        self._chunk = _chunk_memory(config, metadata, self)
        client = settings.connect()
        self._attachment = client.attachment
        self._transfers: Transfers = settings.transfers(client)

    # --- lookups ------------------------------------------------------------------------------
    async def exists(self, key: EngineKey) -> bool:
        return (await self._found([key]))[0]

    def exists_sync(self, key: EngineKey) -> bool:
        return self.batched_contains([key]) == 1

    def support_batched_contains(self) -> bool:
        return True

    def batched_contains(self, keys: Sequence[EngineKey]) -> int:
        """Return how many leading chunks are there. Waits, at most a deadline."""
        waited: Waited[Hits] = Waited()
        self._transfers.lookup([self._key_names(key) for key in keys], waited)
        return _leading(waited.result())

    def support_batched_async_contains(self) -> bool:
        return True

    async def batched_async_contains(
        self, lookup_id: str, keys: Sequence[EngineKey], pin: bool = False
    ) -> int:
        return _leading(await self._found(keys))

    # --- gets ---------------------------------------------------------------------------------
    async def get(self, key: EngineKey) -> Memory | None:
        return (await self.batched_get([key]))[0]

    def support_batched_get(self) -> bool:
        return True

    async def batched_get(self, keys: Sequence[EngineKey]) -> Memories:
        """Return a chunk or None for each key. The caller owns what it gets; what nobody waits for
        any more is given back when the pool is done with it."""
        memories = [self._allocate(key) for key in keys]
        asked = [(key, memory) for key, memory in zip(keys, memories, strict=True) if memory]
        parts = [self._parts(key, memory) for key, memory in asked]

        def keep(found: Blocks) -> Memories:
            kept = iter([
                self._kept(memory, block)
                for (_, memory), block in zip(asked, found, strict=True)
            ])
            return [next(kept) if memory else None for memory in memories]

        def give_back(kept: Memories) -> None:
            for memory in kept:
                if memory is not None:
                    memory.ref_count_down()

        return await self._awaited(
            lambda on_end: self._transfers.load(
                parts, lambda found: on_end(keep(found)), shorter=True
            ),
            give_back,
        )

    def support_batched_get_non_blocking(self) -> bool:
        return True

    async def batched_get_non_blocking(
        self, lookup_id: str, keys: Sequence[EngineKey]
    ) -> Sequence[Memory]:
        """Return the leading chunks that are there."""
        found = await self.batched_get(keys)
        count = _leading([memory is not None for memory in found])
        for memory in found[count:]:
            if memory is not None:
                memory.ref_count_down()
        return [memory for memory in found[:count] if memory is not None]

    # --- puts ---------------------------------------------------------------------------------
    async def put(self, key: EngineKey, memory_obj: Memory) -> None:
        await self.batched_put([key], [memory_obj])

    def support_batched_put(self) -> bool:
        return True

    async def batched_put(
        self, keys: Sequence[EngineKey], memory_objs: Sequence[Memory]
    ) -> None:
        """Store chunks; what the pool does not take is dropped and counted, never raised."""
        held = list(memory_objs)
        for memory in held:
            memory.ref_count_up()

        def release(outcomes: Outcomes) -> Outcomes:
            for memory in held:
                memory.ref_count_down()
            return outcomes

        try:
            parts = [self._parts(key, memory) for key, memory in zip(keys, held, strict=True)]
        except CallerError as error:
            release([])
            log.warning("chunks were not stored: %s", error)
            return

        def start(on_end: Callable[[Outcomes], None]) -> None:
            self._transfers.store(
                parts, lambda outcomes: on_end(release(outcomes)),
                options=self._settings.put_options,
            )

        await self._awaited(start, lambda _: None)

    # --- the rest -----------------------------------------------------------------------------
    def remove_sync(self, key: EngineKey) -> bool:
        """Delete from the pool, for everybody. Waits, at most a deadline."""
        return all(status == 0 for status in self._transfers.remove(self._key_names(key)))

    async def list(self) -> Sequence[str]:
        """A pool does not list: it keeps no names."""
        return []

    def support_ping(self) -> bool:
        return True

    async def ping(self) -> int:
        """0 while every worker can be reached. Asks nobody: the client knows."""
        return PING_FAILED if self._attachment.problems() else 0

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._transfers.close)

    # --- inside -------------------------------------------------------------------------------
    def _key_names(self, key: EngineKey) -> Sequence[bytes]:
        return self._names.kind(key, self.full_chunk_size_bytes).keys(_hash(key))

    def _parts(self, key: EngineKey, memory: Memory) -> Sequence[Part]:
        size_bytes = memory.get_size()
        kind = self._names.kind(key, size_bytes, tuple(memory.get_shape()))
        return kind.parts(_hash(key), [(memory.data_ptr, size_bytes)])

    def _allocate(self, key: EngineKey) -> Memory | None:
        shapes, dtypes, fmt = self._chunk(key)
        return self._allocator.allocate(shapes, dtypes, fmt)

    def _kept(self, memory: Memory, block: BlockFormat | None) -> Memory | None:
        """Return memory that holds a chunk, cut to it; None, given back, when it holds none."""
        if block is not None and block.payload_bytes == memory.get_size():
            return memory
        if block is not None and _same_but_tokens(memory.get_shape(), block.shape):
            with contextlib.suppress(ValueError):
                self.reshape_partial_chunk(memory, block.payload_bytes)
                if tuple(memory.get_shape()) == block.shape:
                    return memory
        memory.ref_count_down()
        return None

    async def _found(self, keys: Sequence[EngineKey]) -> Hits:
        names = [self._key_names(key) for key in keys]
        return await self._awaited(
            lambda on_end: self._transfers.lookup(names, on_end), lambda _: None
        )

    async def _awaited(
        self, start: Callable[[Callable[[ResultT], None]], None],
        unwanted: Callable[[ResultT], None],
    ) -> ResultT:
        """Wait for the end of what `start` begins. `unwanted` gets a result that came after the
        waiting was cancelled."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[ResultT] = loop.create_future()

        def deliver(result: ResultT) -> None:
            if future.cancelled():
                unwanted(result)
            else:
                future.set_result(result)

        def on_end(result: ResultT) -> None:
            try:
                loop.call_soon_threadsafe(deliver, result)
            except RuntimeError:  # the event loop is closed: nobody waits
                unwanted(result)

        start(on_end)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                unwanted(future.result())
            raise


def _chunk_memory(
    config: Config, metadata: Metadata, connector: RemoteConnector
) -> Callable[[EngineKey], tuple[object, object, object]]:
    """Return what says shapes, dtypes and format of the memory that a whole chunk takes."""
    factor, heads, head_size = metadata.kv_shape[1], metadata.kv_shape[3], metadata.kv_shape[4]
    width = heads * head_size
    tokens = metadata.chunk_size
    layer = torch.Size([tokens, factor, width] if factor > 1 else [tokens, width])
    layer_format = MemoryFormat.KV_T2D
    if config.enable_blending:
        layer, layer_format = torch.Size([factor, tokens, width]), MemoryFormat.KV_2TD

    def memory_of(key: EngineKey) -> tuple[object, object, object]:
        if hasattr(key, "layer_id"):
            return layer, key.dtype, layer_format
        return connector.meta_shapes, connector.meta_dtypes, connector.meta_fmt

    return memory_of


def _same_but_tokens(expected: Sequence[int], found: Sequence[int]) -> bool:
    """Whether a shape is the expected one with fewer tokens: one axis may be shorter."""
    return len(expected) == len(found) and (
        sum(one != other for one, other in zip(expected, found, strict=True)) == 1
    )


def _hash(key: EngineKey) -> bytes:
    return key.chunk_hash_hex.encode()


def _leading(hits: Sequence[bool]) -> int:
    return next((number for number, hit in enumerate(hits) if not hit), len(hits))
