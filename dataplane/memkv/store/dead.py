"""Keys that recovery must not bring back, in bounded memory.

A drive may hold far more tombstones than memory has room for, and a tenant may see to that. When
room is short, the tenant with the most of them gets one number for all: what it put before its last
delete is gone, which costs that tenant hits and nobody anything else.
"""


class DeadKeys:
    """Per tenant: keys, and the generation below which records of each are dead."""

    def __init__(self, keys_max: int) -> None:
        self._keys_max = keys_max
        self._keys: dict[bytes, dict[bytes, int]] = {}
        self._floors: dict[bytes, int] = {}
        self._count = 0
        self.tenants_cut = 0
        """How often a tenant's keys gave way to one number."""

    def __bool__(self) -> bool:
        return bool(self._keys)

    def add(self, tenant_tag: bytes, block_id: bytes, generation: int) -> bool:
        """Let records of the key below `generation` be dead; False when that was known."""
        if self.kills(tenant_tag, block_id, generation - 1):
            return False
        keys = self._keys.setdefault(tenant_tag, {})
        self._count -= len(keys)
        keys[block_id] = generation
        self._count += len(keys)
        if self._count > self._keys_max:
            self._cut()
        return True

    def kills(self, tenant_tag: bytes, block_id: bytes, generation: int) -> bool:
        """Say whether a record of the key with this generation is dead."""
        keys = self._keys.get(tenant_tag)
        if keys is None:
            return False
        return keys.get(block_id, -1) > generation or self._floors.get(tenant_tag, -1) > generation

    def _cut(self) -> None:
        tag, keys = max(self._keys.items(), key=lambda item: len(item[1]))
        self._floors[tag] = max(self._floors.get(tag, -1), *keys.values())
        self._count -= len(keys)
        self._keys[tag] = {}
        self.tenants_cut += 1
