"""An HTTP proxy in front of a real API server, which answers wrongly where a script says so.

Plain HTTP on a loopback port to the operator, the server's TLS behind it. Who is to meet the faults
is given the kubeconfig of `write_kubeconfig`; everybody else goes by the server's own one.
"""

import asyncio
import base64
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import aiohttp
from aiohttp import web

from memkv.metadata.kubernetes.api_server import LINE_BYTES_MAX
from memkv_operator.testing.crds import child, objects, read_yaml
from memkv_operator.testing.fault_script import Call, RequestFault, Script, WatchEvent, WatchFault

RETRY_AFTER_S = 1
PASSED_ON = ("Accept", "Authorization", "Content-Type", "User-Agent")
PASSED_BACK = ("Content-Type", "Retry-After", "Warning")


class FaultProxy:
    """An async context manager; it listens between its begin and its end."""

    def __init__(self, kubeconfig: Path, script: Script) -> None:
        """`kubeconfig`: of the real server, with its authority in it."""
        self.script = script
        self._config = read_yaml(kubeconfig)
        cluster = child(objects(self._config, "clusters")[0], "cluster")
        self._server_url = str(cluster["server"])
        authority = base64.b64decode(str(cluster["certificate-authority-data"])).decode()
        self._tls = ssl.create_default_context(cadata=authority)
        self._gone: set[str] = set()
        """Paths whose next watch is answered with 410."""
        self.port = 0

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls, limit=0),
            read_bufsize=LINE_BYTES_MAX // 2,
            timeout=aiohttp.ClientTimeout(total=None),
        )
        self._server = web.Server(self._handle, handler_cancellation=True, access_log=None)
        listening = await asyncio.get_running_loop().create_server(self._server, "127.0.0.1", 0)
        self._listener = listening
        self.port = listening.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        await self._server.shutdown(0)
        await self._session.close()

    def write_kubeconfig(self, path: Path) -> None:
        """Write a kubeconfig that leads here, with the user of the server's own one."""
        cluster = {"server": f"http://127.0.0.1:{self.port}"}
        name = objects(self._config, "clusters")[0]["name"]
        document = {**self._config, "clusters": [{"name": name, "cluster": cluster}]}
        path.write_text(json.dumps(document))  # JSON is YAML

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        is_watch = request.query.get("watch", "") in ("true", "1")
        call = Call(request.method, request.path, is_watch)
        body = await request.content.read()
        if is_watch and call.path in self._gone:
            self._gone.discard(call.path)
            return refusal(410, "Expired", "too old resource version")
        fault = self.script.answer(call)
        if fault is RequestFault.CUT_BEFORE:
            return cut(request)
        if fault is not None and fault.status:
            return refusal(fault.status, fault.name, f"{fault.value} as the script says")
        async with self._session.request(
            request.method,
            f"{self._server_url}{request.raw_path}",
            data=body or None,
            headers={
                "Accept-Encoding": "identity",
                **{name: request.headers[name] for name in PASSED_ON if name in request.headers},
            },
        ) as answer:
            if is_watch and answer.status == 200:
                stream = web.StreamResponse(headers={"Content-Type": "application/json"})
                with contextlib.suppress(ConnectionError):  # its reader has enough
                    await stream.prepare(request)
                    await self._pass_on(request, call, answer, stream)
                return stream
            content = await answer.read()
        if fault is RequestFault.CUT_AFTER:
            return cut(request)
        headers = {name: answer.headers[name] for name in PASSED_BACK if name in answer.headers}
        return web.Response(status=answer.status, body=content, headers=headers)

    async def _pass_on(
        self,
        request: web.BaseRequest,
        call: Call,
        answer: aiohttp.ClientResponse,
        stream: web.StreamResponse,
    ) -> None:
        held = b""
        async for line in lines_of(answer):
            fault = self.script.disturb(event_of(call, line))
            if fault is WatchFault.SWAPPED and not held:
                held = line
                continue
            if fault in (None, WatchFault.DOUBLED, WatchFault.SWAPPED):
                times = 2 if fault is WatchFault.DOUBLED else 1
                await stream.write(line * times + held)
                held = b""
            elif fault is not WatchFault.LOST:
                await self._end(request, call, stream, line, fault)
                return

    async def _end(
        self,
        request: web.BaseRequest,
        call: Call,
        stream: web.StreamResponse,
        line: bytes,
        fault: WatchFault | None,
    ) -> None:
        """End a stream at an event, or let it hang until its reader has enough."""
        match fault:
            case WatchFault.GONE_STATUS:
                self._gone.add(call.path)
            case WatchFault.GONE_EVENT:
                await stream.write(error_event(410, "Expired"))
            case WatchFault.ERROR_EVENT:
                await stream.write(error_event(500, "InternalError"))
            case WatchFault.ENDED | WatchFault.CUT:
                await stream.write(line[: len(line) // 2])
            case WatchFault.HANGS:
                await asyncio.Event().wait()
        if fault is WatchFault.CUT:
            cut(request)


async def lines_of(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield the lines of a watch, each with its end."""
    while line := await answer.content.readline():
        yield line


def event_of(call: Call, line: bytes) -> WatchEvent:
    """Return what a line of a watch is about."""
    event: Any = json.loads(line)
    meta = event["object"].get("metadata", {})
    return WatchEvent(call.plural, meta.get("namespace", ""), meta.get("name", ""), event["type"])


def status_of(code: int, reason: str, message: str) -> dict[str, object]:
    """Return a Status object, as the API server describes failures."""
    return {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    }  # fmt: skip


def refusal(code: int, reason: str, message: str) -> web.Response:
    """Return an answer that refuses a request."""
    headers = {"Retry-After": str(RETRY_AFTER_S)} if code == 429 else {}
    return web.json_response(status_of(code, reason, message), status=code, headers=headers)


def error_event(code: int, reason: str) -> bytes:
    """Return the line of a watch that says that it cannot go on."""
    status = status_of(code, reason, f"{code} as the script says")
    return json.dumps({"type": "ERROR", "object": status}).encode() + b"\n"


def cut(request: web.BaseRequest) -> web.Response:
    """Reset the connection; what is returned reaches nobody."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()
