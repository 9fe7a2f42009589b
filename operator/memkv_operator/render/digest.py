"""A short name for the content of a manifest."""

import json
from hashlib import sha256

from memkv.metadata.kubernetes.json_values import JsonValue


def digest_of(value: JsonValue) -> str:
    """Return 16 hex digits that change when the value does."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()[:16]
