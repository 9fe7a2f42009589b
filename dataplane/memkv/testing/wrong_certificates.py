"""Certificates that an admin service must refuse, and how each is refused."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from memkv.metadata.certificates import ClientTls
from memkv.metadata.endpoint import open_channel
from memkv.testing.certificates import Authority

PAST = datetime.datetime(2021, 1, 1, tzinfo=datetime.UTC)
FUTURE = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)
NO_CONNECTION, FORBIDDEN = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED

WRONG: dict[str, grpc.StatusCode] = {
    "no TLS": NO_CONNECTION,
    "no certificate": NO_CONNECTION,
    "of a stranger's authority": NO_CONNECTION,
    "expired": NO_CONNECTION,
    "expecting another server": NO_CONNECTION,
    "of the server itself": FORBIDDEN,
    "of a client": FORBIDDEN,
    "of an admin of something else": FORBIDDEN,
    "with a wildcard": FORBIDDEN,
    "with a longer name": FORBIDDEN,
    "with a name before it": FORBIDDEN,
    "with the name as its common name only": FORBIDDEN,
    "without any name": FORBIDDEN,
}


@dataclass(frozen=True, slots=True)
class Door:
    """An admin service under TLS, and who alone may come in."""

    endpoint: str
    authority: Authority
    server_name: str
    caller: str
    others: tuple[str, ...]
    """Who may come in elsewhere."""

    def right(self, folder: Path) -> ClientTls:
        """Return what proves the caller."""
        return self._tls(folder, self.authority, (self.caller,), FUTURE, "caller")

    def wrong(self, folder: Path, case: str) -> ClientTls | None:
        """Return what a case of `WRONG` shows."""
        names: dict[str, tuple[str, ...]] = {
            "of the server itself": (self.server_name,),
            "of a client": ("spiffe://test/ns/default/sa/engine",),
            "of an admin of something else": self.others,
            "with a wildcard": (f"*.{self.caller.partition('.')[2] or self.caller}",),
            "with a longer name": (f"{self.caller}.evil",),
            "with a name before it": (f"a.{self.caller}",),
            "with the name as its common name only": ("somebody",),
            "without any name": (),
        }
        if case == "no TLS":
            return None
        if case == "no certificate":
            return ClientTls(self.authority.pem, server_name=self.server_name)
        return self._tls(
            folder,
            Authority() if case == "of a stranger's authority" else self.authority,
            names.get(case, (self.caller,)),
            PAST if case == "expired" else FUTURE,
            self.caller if "common name" in case else "somebody",
            "elsewhere.example" if case == "expecting another server" else "",
        )

    def _tls(
        self, folder: Path, signer: Authority, names: tuple[str, ...], until: datetime.datetime,
        common_name: str, server_name: str = "",
    ) -> ClientTls:  # fmt: skip
        pair = signer.issue(*names, common_name=common_name, until=until)
        (folder / "shown.crt").write_bytes(pair.certificate)
        (folder / "shown.key").write_bytes(pair.key)
        return ClientTls(
            self.authority.pem, folder / "shown.crt", folder / "shown.key",
            server_name=server_name or self.server_name,
        )  # fmt: skip

    def refusal(
        self, tls: ClientTls | None, call: Callable[[grpc.Channel], object]
    ) -> grpc.StatusCode | None:
        """Return how a call is refused; None: it was answered."""
        with open_channel(self.endpoint, tls) as channel:
            try:
                call(channel)
            except grpc.RpcError as error:
                return error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
        return None
