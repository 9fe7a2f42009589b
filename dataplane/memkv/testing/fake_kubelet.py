"""A kubelet that knows nothing but device plugins, over a real Unix socket."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from memkv_proto import kubelet_device_plugin_pb2 as pb
from memkv_proto import kubelet_device_plugin_pb2_grpc as pb_grpc


class FakeKubelet(pb_grpc.RegistrationServicer):
    """Serves Registration and watches who registered. Starting one clears the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for path in folder.glob("*.sock"):
            path.unlink()
        self.devices: dict[str, dict[str, pb.Device]] = {}
        """Last told, by resource and id."""
        self.endpoints: dict[str, str] = {}
        self.requests: list[pb.RegisterRequest] = []
        self.refuses = ""
        self._changed = threading.Condition()
        self._channels: list[grpc.Channel] = []
        self._server = grpc.server(ThreadPoolExecutor(4))
        pb_grpc.add_RegistrationServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{folder / 'kubelet.sock'}")
        self._server.start()

    def Register(  # noqa: N802  the name is gRPC's
        self, request: pb.RegisterRequest, context: grpc.ServicerContext
    ) -> pb.Empty:
        if self.refuses:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, self.refuses)
        self.requests.append(request)
        self.endpoints[request.resource_name] = request.endpoint
        thread = threading.Thread(
            target=self._watch, args=(request.resource_name, request.endpoint), daemon=True
        )
        thread.start()
        return pb.Empty()

    def stub(self, resource: str) -> pb_grpc.DevicePluginStub:
        """Return the plugin of a resource."""
        return self._dial(self.endpoints[resource])

    def wait(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until a condition on what was told holds."""
        until = time.monotonic() + seconds
        with self._changed:
            while not condition():
                if not self._changed.wait(min(0.2, max(0.0, until - time.monotonic()))):
                    assert time.monotonic() < until, f"not so in {seconds} s: {self.devices}"

    def stop(self) -> None:
        """End; leaves its socket behind as a killed kubelet does."""
        for channel in self._channels:
            channel.close()
        self._server.stop(None).wait()

    def _watch(self, resource: str, endpoint: str) -> None:
        try:
            for answer in self._dial(endpoint).ListAndWatch(pb.Empty()):
                with self._changed:
                    self.devices[resource] = {device.ID: device for device in answer.devices}
                    self._changed.notify_all()
        except (grpc.RpcError, ValueError):
            pass  # the plugin or this kubelet ended
        with self._changed:
            self.devices.pop(resource, None)
            self._changed.notify_all()

    def _dial(self, endpoint: str) -> pb_grpc.DevicePluginStub:
        channel = grpc.insecure_channel(f"unix:{self._folder / endpoint}")
        self._channels.append(channel)
        return pb_grpc.DevicePluginStub(channel)
