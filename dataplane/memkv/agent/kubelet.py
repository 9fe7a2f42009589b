"""Makes resources known to kubelet, again after each of its restarts."""

import logging
from collections.abc import Sequence
from pathlib import Path

import grpc

from memkv.agent.decisions import Offer
from memkv.agent.plugin import (
    SOCKET_PREFIX,
    SOCKET_SUFFIX,
    HandOut,
    PluginServer,
    State,
    options,
)
from memkv.errors import ConfigError
from memkv_proto import kubelet_device_plugin_pb2 as pb
from memkv_proto import kubelet_device_plugin_pb2_grpc as pb_grpc

log = logging.getLogger("memkv.agent")

KUBELET_SOCKET = "kubelet.sock"
API_VERSION = "v1beta1"
REGISTER_TIMEOUT_S = 5.0
Birth = tuple[int, int]
"""Of a socket: a kubelet that was started anew makes another one."""


class Kubelet:
    """This node's kubelet. For one thread."""

    def __init__(self, folder: Path, hand_out: HandOut) -> None:
        """`folder`: kubelet's, of device plugins. Removes what an earlier agent left in it."""
        self._folder = folder
        self._hand_out = hand_out
        self._servers: dict[str, PluginServer] = {}
        self._registered: dict[str, Birth] = {}
        self._problems: dict[str, str] = {}
        self.registrations = 0
        """How often a resource was made known."""
        for path in folder.glob(f"{SOCKET_PREFIX}*{SOCKET_SUFFIX}"):
            path.unlink(missing_ok=True)

    def sync(self, offers: Sequence[Offer]) -> None:
        """Offer these resources and no others. What fails is tried again with the next call."""
        for resource in self._servers.keys() - {offer.resource for offer in offers}:
            log.info("%s is offered no longer", resource)
            self._drop(resource)
        birth = self._birth()
        for offer in offers:
            try:
                self._offer(offer, birth)
                self._problems.pop(offer.resource, None)
            except ConfigError as error:
                if self._problems.get(offer.resource) != str(error):
                    log.warning("%s: %s", offer.resource, error)
                self._problems[offer.resource] = str(error)

    def problem(self, resource: str) -> str:
        """Return why kubelet does not have a resource; "": it has it."""
        server = self._servers.get(resource)
        if resource in self._problems or server is None:
            return self._problems.get(resource, "kubelet was not told of it yet")
        return "" if server.plugin.is_watched else "kubelet does not listen yet"

    def stop(self) -> None:
        """Offer nothing."""
        for resource in list(self._servers):
            self._drop(resource)

    def _offer(self, offer: Offer, birth: Birth | None) -> None:
        resource = offer.resource
        if resource in self._servers and not self._servers[resource].is_reachable:
            self._drop(resource)
        if resource not in self._servers:
            self._servers[resource] = PluginServer(self._folder, resource, self._hand_out)
        server = self._servers[resource]
        server.plugin.tell(State(offer.healthy, offer.numa_nodes))
        if birth is None:
            raise ConfigError(
                f"there is no {self._folder / KUBELET_SOCKET}: kubelet does not run, or has another"
                " folder of device plugins"
            )
        if self._registered.get(resource) != birth:
            self._register(resource, server.endpoint)
            self._registered[resource] = birth
            self.registrations += 1
            log.info("%s: made known to kubelet", resource)

    def _register(self, resource: str, endpoint: str) -> None:
        request = pb.RegisterRequest(
            version=API_VERSION, endpoint=endpoint, resource_name=resource, options=options()
        )
        with grpc.insecure_channel(f"unix:{self._folder / KUBELET_SOCKET}") as channel:
            try:
                pb_grpc.RegistrationStub(channel).Register(request, timeout=REGISTER_TIMEOUT_S)
            except grpc.RpcError as error:
                why = error.details() if isinstance(error, grpc.Call) else str(error)
                raise ConfigError(f"kubelet does not take it: {why}") from error

    def _drop(self, resource: str) -> None:
        self._servers.pop(resource).stop()
        self._registered.pop(resource, None)
        self._problems.pop(resource, None)

    def _birth(self) -> Birth | None:
        try:
            found = (self._folder / KUBELET_SOCKET).stat()
        except OSError:
            return None
        return found.st_ino, found.st_ctime_ns
