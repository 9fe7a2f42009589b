"""The double of a shared device plugin, beside a kubelet that knows only device plugins."""

from pathlib import Path

import grpc
import pytest

from memkv.testing.fake_kubelet import FakeKubelet
from memkv.testing.shared_devices import SharedDevices
from memkv_proto import kubelet_device_plugin_pb2 as pb

RESOURCE = "rdma/hca_shared_devices_a"


def test_devices_are_advertised_and_handed_out_until_it_stops(tmp_path: Path) -> None:
    kubelet = FakeKubelet(tmp_path)
    devices = SharedDevices(tmp_path, RESOURCE, 3)
    kubelet.wait(lambda: len(kubelet.devices.get(RESOURCE, {})) == 3)
    assert {device.health for device in kubelet.devices[RESOURCE].values()} == {"Healthy"}
    asked = pb.ContainerAllocateRequest(devices_ids=["device-1"])
    answer = kubelet.stub(RESOURCE).Allocate(pb.AllocateRequest(container_requests=[asked]))
    assert len(answer.container_responses) == 1
    devices.stop()
    kubelet.wait(lambda: RESOURCE not in kubelet.devices)
    kubelet.stop()


def test_a_kubelet_that_refuses_is_an_error(tmp_path: Path) -> None:
    kubelet = FakeKubelet(tmp_path)
    kubelet.refuses = "no"
    with pytest.raises(grpc.RpcError):
        SharedDevices(tmp_path, RESOURCE, 1)
    kubelet.stop()
