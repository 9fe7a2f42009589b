"""What a user may say in the tier's entry of `secondary_tiers`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from memkv.errors import CallerError
from memkv.integrations.settings import SETTING_NAMES, PoolSettings, refuse_unknown

WHERE = "secondary_tiers: MemKVSecondaryTier"
LOOKUP_DEADLINE_MS = 250  # a chunk is computed when the pool has not answered by then
STORE_SHARE = 0.25  # of the host cache that stores may keep from being reused
LOCALITIES = ("LOCAL", "REMOTE")


@dataclass(frozen=True)
class TierSettings:
    """Raises CallerError for names and values that mean nothing."""

    pool: PoolSettings = field(default_factory=PoolSettings)
    model: str = ""
    """Name that engines which share agree on; "": as the engine calls it."""
    lookup_deadline_ms: int = LOOKUP_DEADLINE_MS
    store_share: float = STORE_SHARE
    locality: str = "REMOTE"
    """Of the pool, for vLLM's filters and events."""
    enable_kv_events: bool = False
    share_memory: bool = False
    """Workers on this machine read and write the host cache themselves. Faster; but only they can
    end that, so chunks on their way wait for a worker that hangs, however long."""

    def __post_init__(self) -> None:
        if self.lookup_deadline_ms < 1:
            raise CallerError(f"lookup_deadline_ms must be positive, not {self.lookup_deadline_ms}")
        if not 0 < self.store_share <= 1:
            raise CallerError(f"store_share is a part of the host cache, not {self.store_share}")
        if self.locality not in LOCALITIES:
            raise CallerError(f"locality must be one of {LOCALITIES}, not {self.locality!r}")

    @classmethod
    def of(cls, values: Mapping[str, object]) -> TierSettings:
        """Read what vLLM passes on."""
        own = {entry.name for entry in fields(cls)} - {"pool"}  # among the pool's it is its name
        refuse_unknown(values, SETTING_NAMES | own, WHERE)
        taken = {name: value for name, value in values.items() if name in own and value is not None}
        if isinstance(taken.get("locality"), str):
            taken["locality"] = str(taken["locality"]).upper()
        for name, value in taken.items():
            wanted = type(getattr(cls, name))
            fits = isinstance(value, wanted) or (wanted is float and isinstance(value, int))
            if not fits or (isinstance(value, bool) and wanted is not bool):
                raise CallerError(f"{WHERE}: {name} must be {wanted.__name__}, not {value!r}")
        pool = {name: value for name, value in values.items() if name in SETTING_NAMES}
        try:
            return cls(PoolSettings.of(pool, WHERE), **taken)  # type: ignore[arg-type]  # checked
        except CallerError as error:
            raise CallerError(f"{WHERE}: {str(error).removeprefix(f'{WHERE}: ')}") from None
