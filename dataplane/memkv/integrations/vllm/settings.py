"""What a user may say in `kv_connector_extra_config`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from memkv.client.options import DEFAULT_POOL
from memkv.errors import CallerError
from memkv.limits import MIB

LOOKUP_DEADLINE_MS = 250  # a request is computed when the pool has not answered by then
DEADLINE_MS = 2_000  # of one batch of a load or of a store
LOAD_DEADLINE_MS = 5_000  # of a whole load: after it no batch is begun, and the rest is computed
BATCH_BYTES = 32 * MIB  # what one call moves: long enough for lanes, short enough to stop early
IN_FLIGHT_BYTES = 256 * MIB  # a load advances once a step, so a step's worth must be on its way
LAYER_BATCH_BYTES = 8 * MIB  # the same where layers wait for their parts: the first lands sooner
STAGING_BYTES = 256 * MIB  # eight batches: some are copied, some sent, some landing
STORE_SHARE = 0.25  # of the engine's blocks that stores may hold back from reuse


@dataclass(frozen=True)
class Settings:
    """One engine's choices. Raises CallerError for names and values that mean nothing."""

    endpoint: str | None = None
    """HOST:PORT of the metadata service; None as `memkv.connect` has it."""
    pool: str = DEFAULT_POOL
    tenant: str = "default"
    model: str | None = None
    """Name that engines which share agree on; None: as the engine calls it."""
    revision: str | None = None
    """Of the weights; None: the engine's revision, or a digest of the weights of a local folder."""
    lookup_deadline_ms: int = LOOKUP_DEADLINE_MS
    deadline_ms: int = DEADLINE_MS
    load_deadline_ms: int = LOAD_DEADLINE_MS
    in_flight_bytes: int = IN_FLIGHT_BYTES
    store_share: float = STORE_SHARE
    staging_bytes: int = 0
    """Of an arena through which blocks are copied; 0: only where memory cannot be reached."""
    pipeline_layers: int = 0
    """Layers that are stored and loaded together, so that the first ones compute while the next
    ones are loaded; 0: all of them, before a request's first step."""
    gpu_direct: bool = False
    """Have NICs write loads into the cache in GPU memory; where they cannot, blocks are copied."""
    report: bool = False
    """Return counts by reason with each request, as its `kv_transfer_params`."""

    def __post_init__(self) -> None:
        for name in ("lookup_deadline_ms", "deadline_ms", "load_deadline_ms", "in_flight_bytes"):
            if getattr(self, name) < 1:
                raise CallerError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.store_share <= 1:
            raise CallerError(f"store_share is a part of all blocks, not {self.store_share}")
        if self.gpu_direct and self.pipeline_layers:
            raise CallerError(
                "gpu_direct and pipeline_layers exclude each other: a step that ends gives places "
                "back, whatever a NIC still writes there"
            )
        for name in ("staging_bytes", "pipeline_layers"):
            if getattr(self, name) < 0:
                raise CallerError(f"{name} must not be negative: {getattr(self, name)}")

    @classmethod
    def of(cls, extra: Mapping[str, object]) -> Settings:
        """Read an engine's extra configuration."""
        kinds: dict[str, tuple[type, ...]] = {
            "endpoint": (str,), "pool": (str,), "tenant": (str,), "model": (str,),
            "revision": (str,), "store_share": (float, int), "report": (bool,),
            "gpu_direct": (bool,),
        }
        known = [field.name for field in fields(cls)]
        for name, value in extra.items():
            if name not in known:
                raise CallerError(f"kv_connector_extra_config: no {name!r}; known: {known}")
            kind = kinds.get(name, (int,))
            if not isinstance(value, kind) or (isinstance(value, bool) and kind != (bool,)):
                raise CallerError(
                    f"kv_connector_extra_config: {name} is {value!r}, not of type "
                    + kind[0].__name__
                )
        return cls(**extra)  # type: ignore[arg-type]  # each value's type was looked at
