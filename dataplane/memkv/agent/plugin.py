"""A kubelet device plugin for one resource, over a Unix socket in kubelet's folder of plugins.

The resource has one device: all drives of one pod. Whether a drive is still the one that was
decided upon is asked when a container is made and before each of its starts, because kubelet
remembers what it was told and a node may have been rebooted with other disks in between.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import grpc

from memkv.errors import ConfigError, MemKVError
from memkv_proto import kubelet_device_plugin_pb2 as pb
from memkv_proto import kubelet_device_plugin_pb2_grpc as pb_grpc

DEVICE = "drives"
HEALTHY, UNHEALTHY = "Healthy", "Unhealthy"
CONTAINER_FOLDER = "/dev/memkv"
VARIABLE = "MEMKV_NODE_DRIVES"  # as `memkv node --drives` reads it
SOCKET_PREFIX, SOCKET_SUFFIX = "memkv-", ".sock"
_LOOK_S = 1.0  # how soon a stream sees that kubelet left
_THREADS = 6  # a stream of kubelet and of its predecessor, and calls


@dataclass(frozen=True, slots=True)
class State:
    """What kubelet is told."""

    healthy: bool
    numa_nodes: tuple[int, ...] = ()


HandOut = Callable[[str], Sequence[str]]
"""Paths on the node of a resource's drives, by position; MemKVError when they are not to be had."""


class DevicePlugin(pb_grpc.DevicePluginServicer):
    """Answers kubelet for one resource. Thread-safe."""

    def __init__(self, resource: str, hand_out: HandOut) -> None:
        self._resource = resource
        self._hand_out = hand_out
        self._changed = threading.Condition()
        self._state = State(healthy=False)
        self._closed = False
        self._streams = 0

    @property
    def is_watched(self) -> bool:
        """Whether kubelet listens."""
        with self._changed:
            return self._streams > 0

    def tell(self, state: State) -> None:
        """Have kubelet told."""
        with self._changed:
            self._state = state
            self._changed.notify_all()

    def close(self) -> None:
        """End the streams."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def GetDevicePluginOptions(  # noqa: N802  the name is gRPC's
        self, request: pb.Empty, context: grpc.ServicerContext
    ) -> pb.DevicePluginOptions:
        return options()

    def ListAndWatch(  # noqa: N802  the name is gRPC's
        self, request: pb.Empty, context: grpc.ServicerContext
    ) -> Iterator[pb.ListAndWatchResponse]:
        told: State | None = None
        with self._changed:
            self._streams += 1
        try:
            while context.is_active():
                with self._changed:
                    if self._state == told and not self._closed:
                        self._changed.wait(_LOOK_S)
                    if self._closed:
                        return
                    if self._state == told:
                        continue
                    told = self._state
                yield _devices(told)
        finally:
            with self._changed:
                self._streams -= 1

    def Allocate(  # noqa: N802  the name is gRPC's
        self, request: pb.AllocateRequest, context: grpc.ServicerContext
    ) -> pb.AllocateResponse:
        paths = self._paths(context)
        return pb.AllocateResponse(
            container_responses=[_container(paths) for _ in request.container_requests]
        )

    def PreStartContainer(  # noqa: N802  the name is gRPC's
        self, request: pb.PreStartContainerRequest, context: grpc.ServicerContext
    ) -> pb.PreStartContainerResponse:
        self._paths(context)
        return pb.PreStartContainerResponse()

    def _paths(self, context: grpc.ServicerContext) -> Sequence[str]:
        try:
            return self._hand_out(self._resource)
        except (MemKVError, OSError) as error:
            _refuse(context, str(error))


def options() -> pb.DevicePluginOptions:
    """Return which calls kubelet shall make."""
    return pb.DevicePluginOptions(pre_start_required=True)


def _refuse(context: grpc.ServicerContext, message: str) -> NoReturn:
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, message)
    raise AssertionError("abort returned")


def _devices(state: State) -> pb.ListAndWatchResponse:
    nodes = [pb.NUMANode(ID=node) for node in state.numa_nodes]
    topology = pb.TopologyInfo(nodes=nodes) if nodes else None
    health = HEALTHY if state.healthy else UNHEALTHY
    return pb.ListAndWatchResponse(
        devices=[pb.Device(ID=DEVICE, health=health, topology=topology)]
    )


def _container(paths: Sequence[str]) -> pb.ContainerAllocateResponse:
    inside = [f"{CONTAINER_FOLDER}/drive-{position}" for position in range(len(paths))]
    devices = [
        pb.DeviceSpec(container_path=ours, host_path=theirs, permissions="rw")
        for ours, theirs in zip(inside, paths, strict=True)
    ]
    return pb.ContainerAllocateResponse(envs={VARIABLE: ",".join(inside)}, devices=devices)


class PluginServer:
    """A plugin that listens."""

    def __init__(self, folder: Path, resource: str, hand_out: HandOut) -> None:
        """Listen in kubelet's folder. ConfigError when that is not possible."""
        digest = hashlib.sha256(resource.encode()).hexdigest()[:16]
        self.endpoint = f"{SOCKET_PREFIX}{digest}{SOCKET_SUFFIX}"
        self.plugin = DevicePlugin(resource, hand_out)
        self._path = folder / self.endpoint
        self._path.unlink(missing_ok=True)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="memkv-plugin")
        self._server = grpc.server(self._threads)
        pb_grpc.add_DevicePluginServicer_to_server(self.plugin, self._server)
        try:
            self._server.add_insecure_port(f"unix:{self._path}")
            self._server.start()
            self._inode = self._path.stat().st_ino
        except (OSError, RuntimeError) as error:
            self.stop()
            raise ConfigError(
                f"cannot listen on {self._path}: {error}; the agent needs kubelet's folder of"
                " device plugins"
            ) from error

    @property
    def is_reachable(self) -> bool:
        """Whether its socket is still there: a kubelet that starts removes all of them."""
        try:
            return self._path.stat().st_ino == self._inode
        except OSError:
            return False

    def stop(self) -> None:
        """Stop; kubelet then offers the resource no longer."""
        self.plugin.close()
        self._server.stop(None).wait()
        self._threads.shutdown()
        if self.is_reachable:
            self._path.unlink(missing_ok=True)
