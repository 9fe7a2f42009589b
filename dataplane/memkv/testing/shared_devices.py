"""A kubelet device plugin for a resource that has nothing behind it, as a shared RDMA device plugin
advertises NICs: `python -m memkv.testing.shared_devices rdma/hca_shared_devices_a --count 4`.

A pod that asks for the resource is handed no device: what is tried is where it is scheduled.
"""

import argparse
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from memkv.agent.kubelet import API_VERSION, KUBELET_SOCKET, REGISTER_TIMEOUT_S
from memkv.agent.plugin import HEALTHY
from memkv_proto import kubelet_device_plugin_pb2 as pb
from memkv_proto import kubelet_device_plugin_pb2_grpc as pb_grpc

FOLDER = Path("/var/lib/kubelet/device-plugins")
SOCKET = "shared-devices.sock"


class SharedDevices(pb_grpc.DevicePluginServicer):
    """Advertises some devices until it is stopped."""

    def __init__(self, folder: Path, resource: str, count: int) -> None:
        """Listen in kubelet's folder of device plugins, and register with it. grpc.RpcError when it
        does not take the resource."""
        self._count = count
        self._stopped = threading.Event()
        self._path = folder / SOCKET
        self._path.unlink(missing_ok=True)
        self._server = grpc.server(ThreadPoolExecutor(4))
        pb_grpc.add_DevicePluginServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{self._path}")
        self._server.start()
        request = pb.RegisterRequest(
            version=API_VERSION, endpoint=SOCKET, resource_name=resource,
            options=pb.DevicePluginOptions(),
        )  # fmt: skip
        with grpc.insecure_channel(f"unix:{folder / KUBELET_SOCKET}") as channel:
            pb_grpc.RegistrationStub(channel).Register(request, timeout=REGISTER_TIMEOUT_S)

    def GetDevicePluginOptions(  # noqa: N802  the name is gRPC's
        self, request: pb.Empty, context: grpc.ServicerContext
    ) -> pb.DevicePluginOptions:
        return pb.DevicePluginOptions()

    def ListAndWatch(  # noqa: N802  the name is gRPC's
        self, request: pb.Empty, context: grpc.ServicerContext
    ) -> Iterator[pb.ListAndWatchResponse]:
        context.add_callback(self._stopped.set)  # kubelet left: there is nobody to serve
        devices = [pb.Device(ID=f"device-{n}", health=HEALTHY) for n in range(self._count)]
        yield pb.ListAndWatchResponse(devices=devices)
        self._stopped.wait()

    def Allocate(  # noqa: N802  the name is gRPC's
        self, request: pb.AllocateRequest, context: grpc.ServicerContext
    ) -> pb.AllocateResponse:
        nothing = [pb.ContainerAllocateResponse() for _ in request.container_requests]
        return pb.AllocateResponse(container_responses=nothing)

    def PreStartContainer(  # noqa: N802  the name is gRPC's
        self, request: pb.PreStartContainerRequest, context: grpc.ServicerContext
    ) -> pb.PreStartContainerResponse:
        return pb.PreStartContainerResponse()

    def wait(self) -> None:
        """Wait until it is stopped, or kubelet has left."""
        self._stopped.wait()

    def stop(self) -> None:
        """Advertise nothing any more."""
        self._stopped.set()
        self._server.stop(None).wait()
        self._path.unlink(missing_ok=True)


def main() -> None:
    """Advertise until kubelet leaves."""
    parser = argparse.ArgumentParser(description="Advertises devices that are not there.")
    parser.add_argument("resource", help="such as rdma/hca_shared_devices_a")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    devices = SharedDevices(arguments.folder, arguments.resource, arguments.count)
    try:
        devices.wait()
    finally:
        devices.stop()


if __name__ == "__main__":
    main()
