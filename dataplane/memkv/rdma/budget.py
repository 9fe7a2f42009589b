"""How much of the store's memory writes under way may hold, all lanes together."""

import threading


class ByteBudget:
    """A number of bytes that many take from. Thread-safe."""

    def __init__(self, size_bytes: int) -> None:
        self._left = size_bytes
        self._lock = threading.Lock()

    def take(self, size_bytes: int) -> bool:
        """Reserve; False when there is too little left."""
        with self._lock:
            if self._left < size_bytes:
                return False
            self._left -= size_bytes
            return True

    def give_back(self, size_bytes: int) -> None:
        """Undo `take`."""
        with self._lock:
            self._left += size_bytes
