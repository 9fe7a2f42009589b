"""MemKV: distributed flash memory for the KV cache of LLM inference.

    import memkv
    client = memkv.connect("127.0.0.1:7443")
    client.put("prompt-block", data)
    client.get("prompt-block")          # bytes, or None: recompute

`memkv.aio` is the asyncio twin. Nothing native or networked is loaded before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memkv.limits import DEADLINE_MS_DEFAULT
from memkv.status import Status

if TYPE_CHECKING:
    from memkv.client.credentials import Credentials
    from memkv.client.options import BlockHint, PutOptions
    from memkv.client.sync import Client

__all__ = ["BlockHint", "Client", "Credentials", "PutOptions", "Status", "connect"]

_LAZY = {
    "BlockHint": "memkv.client.options",
    "Client": "memkv.client.sync",
    "Credentials": "memkv.client.credentials",
    "PutOptions": "memkv.client.options",
}


def connect(
    endpoint: str | None = None, *, pool: str = "default/local", tenant: str = "default",
    deadline_ms: int = DEADLINE_MS_DEFAULT, credentials: Credentials | None = None,
) -> Client:
    """Attach to a pool as one tenant.

    `endpoint` is the metadata service's HOST:PORT; None reads MEMKV_ENDPOINT, then the connection
    file of a pod, then 127.0.0.1:7443. Every call of the client ends within `deadline_ms`.
    Returns within about 2 s even when nobody answers: the client then misses, and attaches in the
    background as soon as it can (`Client.wait_ready`). Raises CallerError for bad arguments only.

    `credentials`: None reads MEMKV_CA, MEMKV_TOKEN_FILE and their like, then the connection file;
    without a CA there is no TLS.

    With MEMKV_CACHE_DIR the last map and ticket are kept in that folder, and a client that starts
    while the metadata service is away goes by them.
    """
    from memkv.client.options import ConnectOptions
    from memkv.client.sync import Client as SyncClient

    return SyncClient(ConnectOptions.resolve(endpoint, pool, tenant, deadline_ms, credentials))


def __getattr__(name: str) -> object:
    # Importing memkv stays cheap: an engine's plug-in scan must not load the native module.
    import importlib

    if name == "aio":
        return importlib.import_module("memkv.aio")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'memkv' has no attribute {name!r}")
