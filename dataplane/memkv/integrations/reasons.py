"""Why requests missed: `Client.reasons` of the client that an integration uses."""

from memkv.client.reasons import RequestReasons

__all__ = ["RequestReasons"]
