"""Ports for servers that must come back on the same one."""

import random
import socket

import pytest

from memkv.errors import ConfigError
from memkv.localpool.ports import ephemeral_first, free_ports


def test_ports_are_different_free_and_not_those_of_outgoing_connections() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(port < ephemeral_first() for port in ports)
    for port in ports:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


def test_a_port_that_is_taken_is_not_given() -> None:
    first = free_ports(1, choose=random.Random(7))[0]
    with socket.create_server(("127.0.0.1", first)):
        assert free_ports(1, choose=random.Random(7)) != [first]


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match="an address of this machine"):
        free_ports(1, "192.0.2.1")
