"""Requests to the API server: JSON in, JSON out, errors by what to do.

Only this module knows the package `kubernetes`; it takes from it the ways to find and to trust a
cluster: ServiceAccount, kubeconfig, client certificates, tokens that rotate.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from memkv.errors import ConfigError, MemKVError
from memkv.metadata.kubernetes.errors import Away, error_of
from memkv.metadata.kubernetes.json_values import JsonObject

if TYPE_CHECKING:
    import ssl

    import aiohttp
    from kubernetes.aio.client.configuration import Configuration

REQUEST_TIMEOUT_S = 30.0
LINE_BYTES_MAX = 4 * 1024 * 1024  # of a watch: etcd holds objects of 1.5 MiB
CONNECT_TIMEOUT_S = 10.0
WATCH_SILENCE_S = 90.0  # bookmarks come about once a minute; a stream without is dead
IN_POD_VARIABLE = "KUBERNETES_SERVICE_HOST"
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"

Observer = Callable[[str, int], None]
"""Told of each request's method and status; 0: no answer."""


class ApiServer(Protocol):
    """What is asked of the API server. Raises the errors of this package."""

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: JsonObject | None = None,
        content_type: str = "application/json",
    ) -> JsonObject:
        """Send one request and return the object that it answers with."""

    def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[JsonObject]:
        """Yield watch events ({"type", "object"}) until the server ends the stream."""

    async def close(self) -> None:
        """Close all connections."""


async def connect_api_server(observer: Observer = lambda method, status: None) -> ApiServer:
    """Return a connection with the rights of this pod, or of the kubeconfig outside of pods.

    ConfigError when neither is there, or the package is not installed.
    """
    try:
        import aiohttp
        from kubernetes.aio import config
        from kubernetes.aio.client.configuration import Configuration
        from kubernetes.aio.client.rest import RESTClientObject
    except ImportError as error:
        raise ConfigError(
            "the package `kubernetes` is not installed: pip install 'memkv[operator]'"
        ) from error
    configuration = Configuration()
    place = os.environ.get("KUBECONFIG", str(Path("~/.kube/config").expanduser()))
    load_in_pod: Callable[..., None] = config.load_incluster_config
    try:
        if os.environ.get(IN_POD_VARIABLE) and "KUBECONFIG" not in os.environ:
            load_in_pod(client_configuration=configuration)
        else:
            load: Callable[..., Awaitable[object]] = config.load_kube_config
            await load(config_file=place, client_configuration=configuration)
    except config.ConfigException as error:
        raise ConfigError(
            f"no way to reach a cluster ({error}): run in a pod with a ServiceAccount token, or "
            f"point KUBECONFIG at a kubeconfig (now {place})"
        ) from error
    context: ssl.SSLContext = RESTClientObject(configuration).ssl_context
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context),
        read_bufsize=LINE_BYTES_MAX // 2,  # a line may be twice as long
        trust_env=True,
    )
    return _Connection(configuration, session, observer)


class _Connection:
    """An ApiServer over HTTP."""

    def __init__(
        self, configuration: Configuration, session: aiohttp.ClientSession, observer: Observer
    ) -> None:
        self._configuration = configuration
        self._session = session
        self._observer = observer

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: JsonObject | None = None,
        content_type: str = "application/json",
    ) -> JsonObject:
        what = f"{method} {path}"
        status = 0
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                async with self._session.request(
                    method,
                    self._url(path),
                    params=query,
                    data=json.dumps(body).encode() if body is not None else None,
                    headers=await self._headers(content_type),
                ) as response:
                    answer = await response.read()
                    status = response.status
                    retry_after = response.headers.get("Retry-After")
        except (OSError, TimeoutError, _http_error()) as error:
            raise _away(what, error) from error
        finally:
            self._observer(method, status)
        if not 200 <= status < 300:
            raise error_of(status, answer, retry_after, what)
        return _decoded(answer, what)

    async def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[JsonObject]:
        what = f"WATCH {path}"
        try:
            async with self._session.get(
                self._url(path),
                params={**query, "watch": "true"},
                headers=await self._headers("application/json"),
                timeout=_watch_timeout(),
            ) as response:
                self._observer("WATCH", response.status)
                if response.status != 200:
                    retry_after = response.headers.get("Retry-After")
                    raise error_of(response.status, await response.read(), retry_after, what)
                while line := await response.content.readline():
                    yield _decoded(line, what)
        except MemKVError:
            raise
        except (OSError, TimeoutError, ValueError, _http_error()) as error:
            raise _away(what, error) from error

    async def close(self) -> None:
        await self._session.close()

    def _url(self, path: str) -> str:
        return f"{str(self._configuration.host).rstrip('/')}{path}"

    async def _headers(self, content_type: str) -> dict[str, str]:
        headers = {"Content-Type": content_type, "Accept": "application/json"}
        # Reads the ServiceAccount's token anew when it may have rotated.
        settings = await self._configuration.auth_settings()
        if "BearerToken" in settings:
            headers["Authorization"] = str(settings["BearerToken"]["value"])
        return headers


def _http_error() -> type[Exception]:
    import aiohttp

    return aiohttp.ClientError


def _watch_timeout() -> aiohttp.ClientTimeout:
    import aiohttp

    return aiohttp.ClientTimeout(
        total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=WATCH_SILENCE_S
    )


def _away(what: str, error: Exception) -> Away:
    return Away(f"{what}: the API server does not answer ({error!r})")


def _decoded(answer: bytes, what: str) -> JsonObject:
    try:
        document: object = json.loads(answer)
    except ValueError as error:
        raise Away(f"{what}: an answer that is no JSON; is a proxy in between?") from error
    if not isinstance(document, dict):
        raise Away(f"{what}: an answer that is no JSON object")
    return document
