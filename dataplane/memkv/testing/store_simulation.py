"""Random lives of a store on a simulated device: operations, power losses, recoveries, judgement.

Everything follows from the seed. A run is a chain of lives: each ends by a power loss at a random
device operation (also in the middle of a recovery), and after each recovery every key is read and
judged by the oracle. Some reads go into memory of the caller (`read_into`), as those of the local
transport do, with a caller that sums what comes as the native lanes do.
"""

import itertools
import random
from dataclasses import dataclass, replace

from memkv import checksum, keys, pattern
from memkv.errors import ConfigError
from memkv.limits import KIB, MIB, SECTOR_BYTES
from memkv.status import Status
from memkv.store.api import PendingPut, PutRequest, Store, StoreConfig, StoreReader, open_store
from memkv.store.checks import ALL_CHECKS, Checks
from memkv.store.config import TenantQuota
from memkv.store.reader import ReadResult
from memkv.tenant import Tenant
from memkv.testing.caller_memory import FILL, CallerMemory
from memkv.testing.clock import ManualClock
from memkv.testing.device import PowerLoss, WriteListDevice
from memkv.testing.faults import HONEST, LYING, Faults
from memkv.testing.oracle import ContentOracle, Name, Verdict, content_seed

_V = Verdict
ANY_ANSWER = frozenset({_V.WRONG, _V.STALE, _V.EXPIRED})
EXPIRY_BYTES = (112, 116)  # of a record's header
LENGTHS = (1, 700, 4096, 5000, 8192, 12_288)
WAIT_NS = 1_000_000_000
LIFE_OPERATIONS_MAX = 1_000  # some 60 bring a life to its power loss, where the drive works
ABSENT_IDS = keys.block_ids([f"absent-{number}" for number in range(40)])
"""More than DRAM has room for: asked for, they make all that was used before old."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What a simulation does, and what it holds the store to."""

    name: str
    serving: Faults = HONEST
    recovering: Faults = HONEST
    checks: Checks = ALL_CHECKS
    tag_bits: int = 128
    check_tenant: bool = True
    durable_required: bool = True
    """Durable blocks that were not evicted must be back after a crash."""
    forbidden: frozenset[Verdict] = ANY_ANSWER
    segments: int = 10
    segment_bytes: int = 32 * KIB
    keys: int = 10
    lengths: tuple[int, ...] = LENGTHS
    crash_at_max: int = 110
    lives: int = 12
    ttl_chance: float = 0.2
    outlive_chance: float = 0.3
    """After a recovery: let every expiry pass and judge again."""
    into_chance: float = 0.3
    """Of reads: into the caller's memory."""
    quota_chance: float = 0.0
    """Of operations: tenants get, change or lose quotas."""


# Honest drives lose power; the others only owe C1: never bytes of no put of the key.
HONEST_PROFILE = Profile("honest")
LYING_PROFILE = Profile(
    "lying", serving=LYING, recovering=LYING, durable_required=False,
    forbidden=frozenset({_V.WRONG}),
)  # fmt: skip
QUOTA_PROFILE = Profile("changing quotas", segments=16, quota_chance=0.05)
FLUSH_PROFILE = Profile("failing flushes", serving=Faults(fail_flush=0.1))

# Each is harmless with all checks on, and shows what one check is for when that is off.
NEGATIVE_CONTROLS = {
    "payload_sum": Profile("torn payloads"),
    "header_sum": Profile(
        "rotten expiry", durable_required=False, forbidden=frozenset({_V.WRONG, _V.EXPIRED}),
        recovering=Faults(rot_in_headers=0.5, rot_bytes=EXPIRY_BYTES, rot_from=MIB),
        ttl_chance=0.9, outlive_chance=1.0,
    ),
    "offset": Profile(
        "misdirected reads", serving=Faults(misdirected_read=0.3), durable_required=False, keys=2,
        lengths=(4096, 8192), segment_bytes=64 * KIB, crash_at_max=60,
    ),
    "generation": Profile(
        "segments used again", segments=8, keys=4, crash_at_max=60, ttl_chance=0.0
    ),
    "block_id": Profile("colliding ids", tag_bits=3, durable_required=False),
    "tenant": Profile("colliding tenants", check_tenant=False, durable_required=False),
}  # fmt: skip

OTHER_SEEDS = 200  # of each profile but the honest one and the controls, in every run of the tests
CONTROL_SEEDS = 40  # of each control's profile


class WrongAnswer(AssertionError):
    """The store broke a promise. `placed`: with bytes it read into the caller's memory."""

    def __init__(self, verdict: str, text: str, placed: bool = False) -> None:
        super().__init__(f"{verdict}: {text}")
        self.verdict = verdict
        self.placed = placed


class Simulation:
    """One seed of one profile."""

    def __init__(self, seed: int, profile: Profile) -> None:
        self.seed = seed
        self.profile = profile
        self.random = random.Random(seed)
        self.clock = ManualClock()
        self.oracle = ContentOracle()
        size = MIB + profile.segments * profile.segment_bytes
        self.device = WriteListDevice(seed, size_bytes=size)
        self.tenants = [Tenant.named("alpha"), Tenant.named("beta")]
        self.names = [
            (tenant, f"key-{number}") for tenant in self.tenants for number in range(profile.keys)
        ]
        self.ids = {name: keys.block_id(name[1]) for name in self.names}
        self._by_tag = {(t.tag, self.ids[t, key]): (t.name, key) for t, key in self.names}
        self.crash_points = 0
        self.hits = 0
        self.placed = 0
        self.memory = CallerMemory(profile.keys, max(profile.lengths))
        self._store: Store | None = None
        self._reader: StoreReader | None = None
        self.config = StoreConfig(
            memory_bytes=128 * KIB, block_bytes_max=max(profile.lengths), index_blocks_max=200,
            segment_bytes=profile.segment_bytes, checks=profile.checks,
            index_tag_bits=profile.tag_bits, index_check_tenant=profile.check_tenant,
            threads=False, on_evict=self._evicted, queue_depth=8,
        )  # fmt: skip

    def run(self) -> None:
        """Live all lives. Raises WrongAnswer."""
        self._open()
        while self.crash_points < self.profile.lives:
            self._arm()
            try:
                for _ in range(LIFE_OPERATIONS_MAX):
                    self._operate()
            except PowerLoss:
                self._power_loss()
            else:
                if self.profile.serving == self.profile.recovering == HONEST:
                    raise WrongAnswer("stuck", "the drive is asked for nothing any more")
                return  # all of it went bad: refusing puts is right
            try:
                self._recover()
                self._check_all()
            except ConfigError:
                if not self.profile.recovering.lies:
                    raise
                return  # both superblocks are gone: refusing the drive is right

    # --- lives -------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Let power go at a random operation from now on."""
        self.device.operations = 0
        crash_at = self.random.randint(1, self.profile.crash_at_max)
        self.device.faults = replace(self.device.faults, crash_at=crash_at)

    def _power_loss(self) -> None:
        self.crash_points += 1
        self.device.after_crash(self.profile.recovering)

    def _open(self) -> None:
        self.open(self.device.faults)
        self.device.faults = self.profile.serving

    def _recover(self) -> None:
        """Open after a power loss, sometimes with another one on the way."""
        while True:
            if self.random.random() < 0.25:
                self._arm()
            try:
                self._open()
                return
            except PowerLoss:
                self._power_loss()

    @property
    def store(self) -> Store:
        """The open store."""
        assert self._store is not None
        return self._store

    def open(self, faults: Faults) -> None:
        """Open the drive with these faults, then and afterwards. Raises ConfigError."""
        self.device.faults = faults
        self._store = open_store(self.device, self.config, self.clock, self.random)
        self._reader = self._store.new_reader()

    def recover_and_check(self) -> None:
        """Open the drive as it is and judge every key."""
        self._open()
        self._judge_all()

    def _check_all(self) -> None:
        """Judge every key, sometimes again when all has expired or after a reopen."""
        self._judge_all()
        if self.random.random() < self.profile.outlive_chance:
            self.clock.advance_ms(31_000)
            self.read(self.names)
        if self.random.random() < 0.1:
            self.store.close(clean=self.random.random() < 0.5)
            self.device.faults = self.profile.recovering
            self._open()
            self.read(self.names)

    def _judge_all(self) -> None:
        found = self.read(self.names)
        if self.profile.durable_required:
            for name in self.oracle.required(self.clock.wall_s()):
                if name not in found:
                    raise WrongAnswer("lost", f"durable {name} is gone: {self.store.recovery}")

    def _operate(self) -> None:
        if self.profile.quota_chance and self.random.random() < self.profile.quota_chance:
            self._set_quotas()
            return
        chance = self.random.random()
        if chance < 0.55:
            self._put(durable=chance < 0.3)
        elif chance < 0.7:
            self._delete()
        elif chance < 0.85:
            self.read(self.random.sample(self.names, 4), may_stop=True)
        elif chance < 0.93:
            self.store.pump()
        elif chance < 0.96:
            self.store.flush(self.deadline_ns())
        elif chance < 0.98:
            self.clock.advance_ms(self.random.randrange(10_000))
        else:
            tenant, key = self.random.choice(self.names)
            self.store.pin(tenant, self.ids[tenant, key], 10)

    # --- operations --------------------------------------------------------------------------

    def _set_quotas(self) -> None:
        quotas = tuple(
            TenantQuota(tenant.name, segments * self.profile.segment_bytes, 16 * KIB)
            for tenant in self.tenants
            if (segments := self.random.randrange(6))
        )
        self.config = replace(self.config, quotas=quotas)
        self.store.set_quotas(quotas)

    def deadline_ns(self) -> int:
        """Return a deadline that is not reached: the clock stands still during an operation."""
        return self.clock.monotonic_ns() + WAIT_NS

    def _put(self, durable: bool) -> None:
        tenant, key = self.random.choice(self.names)
        lives_on = self.random.random() >= self.profile.ttl_chance
        ttl_s = 0 if lives_on else self.random.randint(5, 30)
        self.put(tenant, key, self.random.choice(self.profile.lengths), durable, ttl_s)

    def put(self, tenant: Tenant, key: str, length: int, durable: bool, ttl_s: int = 0) -> None:
        """Put a block and tell the oracle what was promised."""
        name: Name = (tenant.name, key)
        block_id = self.ids[tenant, key]
        expiry_s = self.clock.wall_s() + ttl_s if ttl_s else 0
        known = self.oracle.begin_put(name, length, expiry_s)
        data = pattern.block(content_seed(name, known.number), length)
        seal = checksum.seal(data, block_id, tenant.tag)
        request = PutRequest(
            block_id, length, seal.root, seal.sums, ttl_s=ttl_s, durable=durable
        )
        pending = self.store.begin_put(tenant, request, self.deadline_ns())
        if not isinstance(pending, PendingPut):
            self.oracle.withdraw(name, known)
            if pending is Status.OK and durable:
                self.oracle.present_is_durable(name)
            return
        pending.payload[:] = data
        if pending.commit() is not Status.OK:
            self.oracle.withdraw(name, known)
            return
        if durable:
            status = self.store.wait_durable([pending], self.deadline_ns())[0]
            known.durable = status is Status.OK

    def _delete(self) -> None:
        tenant = self.random.choice(self.tenants)
        chosen = self.random.sample(range(self.profile.keys), 2)
        self.delete(tenant, [f"key-{number}" for number in chosen])

    def delete(self, tenant: Tenant, chosen: list[str]) -> None:
        """Delete keys and tell the oracle what was promised."""
        for key in chosen:
            self.oracle.delete_asked((tenant.name, key))
        ids = b"".join(self.ids[tenant, key] for key in chosen)
        statuses = self.store.delete(tenant, ids, self.deadline_ns())
        if statuses == bytes(4 * len(chosen)):
            for key in chosen:
                self.oracle.delete_acknowledged((tenant.name, key))

    def _evicted(self, tag: bytes, block_id: bytes) -> None:
        self.oracle.evicted(self._by_tag[tag, block_id])

    def read(self, names: list[tuple[Tenant, str]], *, may_stop: bool = False) -> set[Name]:
        """Read one way or the other and judge; return the names that hit.

        `may_stop`: a caller of `read_into` may lose interest before all is there.
        """
        found: set[Name] = set()
        for tenant in self.tenants:
            chosen = [key for owner, key in names if owner is tenant]
            if chosen and self.random.random() < self.profile.into_chance:
                found |= self._read_into(tenant, chosen, may_stop)
            else:
                found |= self._get(tenant, chosen)
        return found

    def _get(self, tenant: Tenant, chosen: list[str]) -> set[Name]:
        assert self._reader is not None
        ids = b"".join(self.ids[tenant, key] for key in chosen)
        found: set[Name] = set()
        for position, result in self._reader.read(
            tenant, ids, None, self.deadline_ns(), verify=True
        ):
            if result.status is Status.OK:
                name = (tenant.name, chosen[position])
                self._judge(name, result, result.payload)
                found.add(name)
            result.release()
        return found

    def _judge(self, name: Name, result: ReadResult, data: memoryview) -> None:
        verdict = self.oracle.judge(name, data, self.clock.wall_s())
        if verdict in self.profile.forbidden:
            raise WrongAnswer(verdict.value, f"{name} from {result.source}", result.placed)
        self.hits += 1
        self.placed += result.placed

    def _read_into(self, tenant: Tenant, chosen: list[str], may_stop: bool) -> set[Name]:
        """Read into the caller's memory. What does not add up there is asked for as a plain get,
        as clients do."""
        assert self._reader is not None
        if not self.memory.is_untouched():
            raise WrongAnswer("late write", "into memory of a call that had ended")
        if self.random.random() < 0.7:
            for _ in self._reader.read(tenant, ABSENT_IDS, None, self.deadline_ns()):
                pass
        count = len(chosen)
        wanted = self.random.randint(1, count) if may_stop else count
        answers = self._reader.read_into(
            tenant, b"".join(self.ids[tenant, key] for key in chosen),
            self.memory.targets(count, self.random), self.deadline_ns(),
        )  # fmt: skip
        found: set[Name] = set()
        again: list[str] = []
        try:
            for position, result in itertools.islice(answers, wanted):
                name = (tenant.name, chosen[position])
                if result.status is not Status.OK:
                    self._judge_leftover(name, self.memory.slot(position, SECTOR_BYTES))
                elif self._take(name, position, result):
                    found.add(name)
                else:
                    again.append(name[1])
                result.release()
            answers.close()
            if wanted < count:  # until it reads again, a reader holds what it left in flight
                self._reader.close()
                self._reader = self.store.new_reader()
        finally:
            self.memory.wipe()
        return found | self._get(tenant, again)

    def _take(self, name: Name, position: int, result: ReadResult) -> bool:
        """Judge a block that came; False when its sums say that it must be asked for again."""
        header = result.header
        assert header is not None
        data = result.payload
        if result.placed:
            data = self.memory.slot(position, result.length)
            if self.memory.is_overrun(position, result.length):
                raise WrongAnswer("overrun", f"{name}: written around its {result.length} bytes")
        # What the node vouches for, and no more: a client also binds the root to its own key.
        if self.profile.checks.payload_sum and not checksum.verify_payload(
            data, header.block_id, header.tenant_tag, header.length, header.sums, header.root
        ):
            return False
        self._judge(name, result, data)
        return True

    def _judge_leftover(self, name: Name, data: memoryview) -> None:
        """A caller without a hit must not find another tenant's bytes in its memory."""
        if data[0] != FILL and self.oracle.tenants_of(data) - {name[0]}:
            raise WrongAnswer("leak", f"{name} is no hit, and left another tenant's bytes")


def run_seeds(profile: Profile, first: int, count: int) -> int:
    """Run `count` seeds from `first` on; return how many crash points they had. AssertionError that
    names the seed and how to run it again."""
    crash_points = placed = 0
    for seed in range(first, first + count):
        simulation = Simulation(seed, profile)
        try:
            simulation.run()
        except Exception as error:
            again = (
                f"SEED={seed} PROFILE={profile.name!r} python -m pytest"
                " tests/crash/test_power_loss.py -k one_seed"
            )
            raise AssertionError(f"{error!r}\nreproduce: {again}") from error
        crash_points += simulation.crash_points
        placed += simulation.placed
    assert placed >= count // 2, "next to nothing was read into the caller's memory"
    return crash_points
