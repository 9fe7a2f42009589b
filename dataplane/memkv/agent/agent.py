"""`memkv agent`: looks at the node's disks again and again, and does with them what it was told."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing

from prometheus_client import CollectorRegistry

from memkv.agent import seccomp
from memkv.agent.admin import AgentServer
from memkv.agent.agent_config import AgentConfig
from memkv.agent.decisions import (
    Assigned,
    Decision,
    Erasure,
    Examined,
    Grant,
    Offer,
    Wipe,
    decide,
    decide_wipes,
)
from memkv.agent.erasing import Begun, Journal, erase, wipe
from memkv.agent.facts import assignment_facts, disk_facts, wipe_facts
from memkv.agent.host import ReadDevices, read_devices
from memkv.agent.inventory import Disks, Inventory
from memkv.agent.kubelet import Kubelet
from memkv.agent.metrics import AgentCollector, AgentView
from memkv.agent.opened import DiskBusy, DiskChanged, HostDisks
from memkv.agent.rules import misleading_links
from memkv.agent.state import AgentState, assignments_of
from memkv.agent.turn import Turn
from memkv.clock import Clock, SystemClock
from memkv.daemons import run_until_signalled, software_version
from memkv.errors import ConfigError, RetryLater
from memkv.metadata.http import PlainHttpServer, Route, metrics_page, probe_page
from memkv_proto import agent_admin_pb2 as pb

log = logging.getLogger("memkv.agent")

LOOK_INTERVAL_S = 2.0  # a drive that is pulled is Unhealthy so soon; sysfs costs 1 ms a disk
WIPE_STEP_S = 1.0  # then containers that wait for drives get their turn
STUCK_S = 120.0  # a look that hangs in a dying drive: kubelet starts the agent anew


class Agent:
    """Everything of one node's agent. Whoever touches disks or state takes the turn."""

    def __init__(
        self, config: AgentConfig, clock: Clock | None = None, disks: Disks | None = None,
        read: ReadDevices = read_devices,
    ) -> None:  # fmt: skip
        """Take the state directory. ConfigError when another agent has it."""
        self._config = config
        self._clock = clock or SystemClock()
        self._disks: Disks = disks or HostDisks(config.root)
        self._turn = Turn()
        self._state = AgentState(config.state_dir)
        self._journal = Journal(config.state_dir / "erasing")
        self._inventory = Inventory(config.root, self._disks, config.disks, self._clock, read)
        self._kubelet = Kubelet(config.plugin_dir, self._hand_out)
        self._version = software_version()
        self._problems: list[str] = []
        self._profile = ""
        self._erased = 0
        self._looked_ns = self._clock.monotonic_ns()
        self._view = AgentView(pb.AgentFacts(node_name=config.name))
        self._woken, self._stopping = threading.Event(), threading.Event()
        self._admin: AgentServer | None = None
        self._http: PlainHttpServer | None = None
        self._thread = threading.Thread(target=self._run, name="memkv-agent", daemon=True)

    @property
    def admin_endpoint(self) -> str:
        """HOST:PORT of AgentAdmin; "" before `start`."""
        return self._admin.endpoint if self._admin is not None else ""

    @property
    def http_port(self) -> int:
        """Port of /metrics; 0 before `start`."""
        return self._http.port if self._http is not None else 0

    def start(self) -> None:
        """Listen and begin to look. ConfigError when a port is taken."""
        config = self._config
        self._install_profile()
        self._admin = AgentServer(config, self.facts, self.apply)
        self._http = PlainHttpServer(config.host, config.http_port, self._routes())
        self._thread.start()
        log.info("agent of %s: admin at %s", config.name, self.admin_endpoint)

    def stop(self) -> None:
        """Offer nothing any more and stop listening. Pods keep the drives that they have."""
        self._stopping.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._admin is not None:
            self._admin.stop()
        if self._http is not None:
            self._http.stop()
        self._kubelet.stop()
        self._state.release()

    # --- what the operator asks ----------------------------------------------------------------

    def facts(self) -> pb.AgentFacts:
        """Return what was last seen, with the generation in force."""
        facts, spec = pb.AgentFacts(), self._state.spec
        facts.CopyFrom(self._view.facts)
        if facts.spec_generation != spec.generation:
            facts.spec_generation = spec.generation
            del facts.assignments[:], facts.wipes[:]
            facts.assignments.extend(
                assignment_facts(Offer(a.pool_uid, a.resource, ()), "not looked at yet")
                for a in spec.assignments
            )
            facts.wipes.extend(wipe_facts((), self._state.wiped, spec.wipes, {}))
        return facts

    def apply(self, spec: pb.AgentSpec) -> None:
        """Take a spec over. Errors as AgentState.apply."""
        with self._turn:
            self._state.apply(spec)
        log.info("spec generation %d: %d assignments, %d wipes", spec.generation,
                 len(spec.assignments), len(spec.wipes))  # fmt: skip
        self._woken.set()

    # --- looking and doing ---------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._woken.clear()
            try:
                again = self.step()
            except Exception:
                log.exception("a look at the disks failed")
                again = False
            if not again:
                self._woken.wait(LOOK_INTERVAL_S)

    def step(self) -> bool:
        """Look once and do what follows. Returns whether there is more to do at once."""
        with self._turn:
            assignments = assignments_of(self._state.spec)
            problems = list(self._problems)
            disks: list[Examined] = []
            wipes: list[Wipe] = []
            begun: Mapping[str, Begun] = {}
            more = False
            try:
                disks = self._inventory.look(self._granted(assignments))
                begun = self._begun(disks)
                decision = self._decided(assignments, disks, begun)
                offers: Sequence[Offer] = decision.offers
                for erasure in decision.erasures:
                    more = self._erase(erasure, problems) or more
                wipes = self._pending_wipes(assignments, disks, begun)
                more = self._wipe(wipes, problems) or more
            except (ConfigError, OSError) as error:
                problems.append(str(error))
                offers = [Offer(a.pool_uid, a.resource, (), str(error)) for a in assignments]
            problems += [
                f"{link} in /dev/disk/by-id leads to /dev/{disk.device.name} ({disk.device.wwid})"
                for disk in disks
                for link in misleading_links(disk.device)
            ]
            self._kubelet.sync(offers)
            self._show(disks, offers, wipes, begun, problems)
            self._looked_ns = self._clock.monotonic_ns()
            return more

    def _granted(self, assignments: Sequence[Assigned]) -> set[str]:
        """Return the disks that pods of the right pools may be opening just now."""
        owners = {d.id: a.pool_uid for a in assignments for d in a.drives}
        grants = self._state.grants
        return {disk for disk, grant in grants.items() if owners.get(disk) == grant.pool_uid}

    def _begun(self, disks: Sequence[Examined]) -> dict[str, Begun]:
        found = {disk.device.id: self._journal.of(disk.device) for disk in disks}
        return {disk: begun for disk, begun in found.items() if begun is not None}

    def _decided(
        self, assignments: Sequence[Assigned], disks: Sequence[Examined], begun: Mapping[str, Begun]
    ) -> Decision:
        decision = decide(assignments, self._state.grants, disks, _fingerprints(begun))
        self._state.keep_grants(decision.grants)
        return decision

    def _erase(self, erasure: Erasure, problems: list[str]) -> bool:
        """Erase a disk; returns whether that is done. What fails is tried at the next look."""
        device = erasure.device
        self._inventory.forget(device)
        try:
            log.warning("erasing %s, as approved by %s", device.path, erasure.fingerprint)
            erase(device, erasure.fingerprint, erasure.kind, self._disks, self._journal)
        except (DiskChanged, DiskBusy) as error:
            problems.append(str(error))
            return False
        except OSError as error:
            problems.append(f"erasing {device.path} failed: {error.strerror} (dmesg, smartctl)")
            return False
        self._erased += 1
        grant = Grant(erasure.pool_uid, device.identity)
        self._state.keep_grants({**self._state.grants, device.id: grant})
        self._journal.forget(device)
        return True

    def _pending_wipes(
        self, assignments: Sequence[Assigned], disks: Sequence[Examined], begun: Mapping[str, Begun]
    ) -> list[Wipe]:
        pending = [f for f in self._state.spec.wipes if f not in self._state.wiped]
        return decide_wipes(pending, assignments, disks, _fingerprints(begun))

    def _wipe(self, wipes: Sequence[Wipe], problems: list[str]) -> bool:
        """Go on with the first wipe that can be done, for WIPE_STEP_S, or until somebody waits."""
        for one in wipes:
            device = one.device
            if device is None:
                continue
            self._inventory.forget(device)
            until_ns = self._clock.monotonic_ns() + int(WIPE_STEP_S * 1e9)
            try:
                with closing(wipe(device, one.fingerprint, self._disks, self._journal)) as progress:
                    for _ in progress:
                        over = self._clock.monotonic_ns() > until_ns
                        if over or self._turn.wanted or self._stopping.is_set():
                            return True
            except (DiskChanged, DiskBusy) as error:
                problems.append(str(error))
                continue
            except OSError as error:
                problems.append(f"wiping {device.path} failed: {error.strerror} (dmesg, smartctl)")
                continue
            log.warning("wiped %s, as asked for by %s", device.path, one.fingerprint)
            self._state.note_wiped(one.fingerprint)
            self._journal.forget(device)
            return True
        return False

    def _hand_out(self, resource: str) -> Sequence[str]:
        """As plugin.HandOut: look anew, so that a swapped disk is never handed out."""
        with self._turn:
            assignments = assignments_of(self._state.spec)
            fresh = {d.id for a in assignments if a.resource == resource for d in a.drives}
            disks = self._inventory.look(self._granted(assignments), fresh)
            decision = self._decided(assignments, disks, self._begun(disks))
            for offer in decision.offers:
                if offer.resource != resource:
                    continue
                if offer.problem:
                    raise RetryLater(offer.problem)
                for device in offer.devices:
                    if not self._disks.leads_to(device):
                        raise RetryLater(f"{device.path} does not lead to /dev/{device.name} now")
                return [device.path for device in offer.devices]
            raise RetryLater(f"{resource} is assigned to no pod any more")

    # --- what is shown -------------------------------------------------------------------------

    def _show(
        self, disks: Sequence[Examined], offers: Sequence[Offer], wipes: Sequence[Wipe],
        begun: Mapping[str, Begun], problems: Sequence[str],
    ) -> None:  # fmt: skip
        spec = self._state.spec
        assigned = {drive.id for a in spec.assignments for drive in a.drives}
        progress = {one.fingerprint: one.wiped_bytes for one in begun.values()}
        facts = pb.AgentFacts(
            node_name=self._config.name,
            software_version=self._version,
            spec_generation=spec.generation,
            disks=[disk_facts(disk, assigned=disk.device.id in assigned) for disk in disks],
            assignments=[
                assignment_facts(offer, self._kubelet.problem(offer.resource)) for offer in offers
            ],
            wipes=wipe_facts(wipes, self._state.wiped, spec.wipes, progress),
            seccomp_profile=self._profile,
            problems=problems,
        )
        for problem in set(problems) - set(self._view.facts.problems):
            log.warning("%s", problem)
        self._view = AgentView(facts, self._erased, self._kubelet.registrations)

    def _install_profile(self) -> None:
        if self._config.seccomp_dir is None:
            return
        try:
            seccomp.install(self._config.seccomp_dir)
        except OSError as error:
            self._problems.append(
                f"cannot install the seccomp profile in {self._config.seccomp_dir}:"
                f" {error.strerror}; data-plane pods that use it do not start"
            )
        else:
            self._profile = seccomp.PROFILE

    def _routes(self) -> dict[str, Route]:
        registry = CollectorRegistry()
        registry.register(AgentCollector(lambda: self._view))
        return {
            "/metrics": lambda: metrics_page(registry),
            "/healthz": lambda: probe_page(*self._health()),
            "/readyz": lambda: probe_page(*self._readiness()),
        }

    def _health(self) -> tuple[bool, str]:
        silent_s = (self._clock.monotonic_ns() - self._looked_ns) / 1e9
        if silent_s > STUCK_S:
            return False, f"the last look at the disks was {silent_s:.0f} s ago"
        return True, "ok"

    def _readiness(self) -> tuple[bool, str]:
        if not self._view.facts.software_version:
            return False, "the disks were not looked at yet"
        return self._health()


def _fingerprints(begun: Mapping[str, Begun]) -> dict[str, str]:
    return {disk: one.fingerprint for disk, one in begun.items()}


def run_agent(
    config: AgentConfig, clock: Clock | None = None,
    started: Callable[[Agent], None] = lambda agent: None,
) -> None:  # fmt: skip
    """Run an agent until SIGTERM or SIGINT; `started` is told when it listens. ConfigError when it
    cannot start."""
    run_until_signalled(lambda: Agent(config, clock), started)
