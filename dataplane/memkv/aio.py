"""The asyncio face of MemKV: `client = await memkv.aio.connect(...)`."""

from __future__ import annotations

import asyncio

from memkv.client.aio_client import AsyncClient
from memkv.client.attach import Attachment
from memkv.client.credentials import Credentials
from memkv.client.options import ConnectOptions
from memkv.limits import DEADLINE_MS_DEFAULT

__all__ = ["AsyncClient", "connect"]


async def connect(
    endpoint: str | None = None, *, pool: str = "default/local", tenant: str = "default",
    deadline_ms: int = DEADLINE_MS_DEFAULT, credentials: Credentials | None = None,
) -> AsyncClient:
    """Attach to a pool; the arguments are those of `memkv.connect`."""
    options = ConnectOptions.resolve(endpoint, pool, tenant, deadline_ms, credentials)
    loop = asyncio.get_running_loop()
    attachment = await loop.run_in_executor(None, Attachment, options)
    return AsyncClient(options, attachment)
