"""The address of a worker that speaks TLS."""

import ssl


class EncryptedAddress(tuple[str, int]):
    """Where a worker speaks TLS, and how to speak it there."""

    tls: ssl.SSLContext
    server_name: str

    @classmethod
    def of(
        cls, address: tuple[str, int], tls: ssl.SSLContext, server_name: str
    ) -> "EncryptedAddress":
        made = cls(address)
        made.tls, made.server_name = tls, server_name
        return made
