"""Why requests missed, counted for each request and in all."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Hashable, Mapping

from memkv.limits import REASON_REQUESTS_MAX
from memkv.reasons import MissReason


class RequestReasons:
    """Counts reasons by request; of the last REASON_REQUESTS_MAX requests. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: OrderedDict[Hashable, Counter[MissReason]] = OrderedDict()
        self._totals: Counter[MissReason] = Counter()

    def note(self, request: Hashable, reason: MissReason, count: int = 1) -> None:
        """Count `count` blocks of a request. Hits count as PRESENT, so that shares can be told."""
        with self._lock:
            found = self._requests.get(request)
            if found is None:
                found = self._requests[request] = Counter()
                if len(self._requests) > REASON_REQUESTS_MAX:
                    self._requests.popitem(last=False)
            found[reason] += count
            self._totals[reason] += count

    def take(self, request: Hashable) -> Mapping[MissReason, int]:
        """Return what was counted for a request that has ended, and forget the request."""
        with self._lock:
            return dict(self._requests.pop(request, ()))

    @property
    def totals(self) -> Mapping[MissReason, int]:
        """All requests together, since the start."""
        with self._lock:
            return dict(self._totals)
