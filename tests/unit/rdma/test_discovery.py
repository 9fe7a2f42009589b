"""Which GID of a port is chosen, and what is said of the others: tables of cases."""

from ipaddress import IPv6Address, ip_address

import pytest

from memkv.rdma.discovery import choose, choose_all, explain, gid_address
from memkv.rdma.verbs import Gid, GidType, LinkLayer, Port

HERE, AWAY = 3, 9
V1, V2, IB = GidType.ROCE_V1, GidType.ROCE_V2, GidType.INFINIBAND


def gid(index: int, address: str, kind: GidType = V2, interface: int = HERE) -> Gid:
    text = f"::ffff:{address}" if "." in address else address
    return Gid(index, IPv6Address(text).packed, kind, interface)


def port(
    *gids: Gid, link: LinkLayer = LinkLayer.ETHERNET, state: str = "active", number: int = 1
) -> Port:
    return Port("mlx5_0", number, state == "active", state, link, 4096, 0, gids)


LINK_LOCAL = gid(0, "fe80::1")
OLD = gid(1, "10.0.0.1", V1)

CHOSEN: dict[str, tuple[Port, int, str]] = {
    "the usual table of a NIC": (
        port(gid(0, "fe80::1", V1), gid(1, "fe80::1"), gid(2, "10.0.0.1", V1), gid(3, "10.0.0.1")),
        3, "RoCE v2 by IPv4",
    ),
    "a sparse table of a pod": (
        port(gid(0, "fe80::1", V2, AWAY), gid(5, "10.0.0.1", V2, AWAY), gid(11, "10.1.0.7")),
        11, "RoCE v2 by IPv4",
    ),
    "the lowest of two": (
        port(gid(7, "10.0.0.2"), gid(5, "10.0.0.1")), 5, "the lowest index of 2 such",
    ),
    "IPv4 before IPv6": (port(gid(2, "2001:db8::1"), gid(6, "10.0.0.1")), 6, "by IPv4"),
    "IPv6 alone": (port(LINK_LOCAL, gid(2, "2001:db8::1")), 2, "by IPv6"),
    "a private IPv6 network": (port(LINK_LOCAL, gid(2, "fd00::1")), 2, "by IPv6"),
    "not an automatic address": (
        port(gid(1, "169.254.3.4"), gid(2, "2001:db8::1")), 2, "by IPv6",
    ),
    "InfiniBand's own prefix is link-local": (
        port(gid(0, "fe80::2c9:0:0:1", IB, 0), link=LinkLayer.INFINIBAND), 0, "InfiniBand",
    ),
    "the lowest of InfiniBand": (
        port(gid(1, "fe80::2", IB, 0), gid(0, "fe80::1", IB, 0), link=LinkLayer.INFINIBAND),
        0, "the lowest index of 2 such",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOSEN)
def test_chosen(name: str) -> None:
    looked_at, index, reason = CHOSEN[name]
    choice = choose(looked_at, {1, HERE})
    assert choice.gid is not None
    assert choice.gid.index == index
    assert reason in choice.reason


REFUSED: dict[str, tuple[Port, str]] = {
    "a port that is down": (port(gid(1, "10.0.0.1"), state="down"), "it is down"),
    "a port that is still armed": (port(gid(1, "10.0.0.1"), state="armed"), "it is armed"),
    "another link layer": (port(gid(1, "10.0.0.1"), link=LinkLayer.OTHER), "neither"),
    "an empty table": (port(), "give its network interface an address"),
    "link-local only": (port(LINK_LOCAL), "none of its 1 GIDs fits (0: link-local (fe80::/10))"),
    "automatic address only": (port(gid(1, "169.254.1.1")), "1: link-local (169.254.0.0/16)"),
    "RoCE v1 only": (port(OLD, gid(2, "10.0.0.2", V1)), "1, 2: RoCE v1 does not pass routers"),
    "another namespace's": (
        port(gid(4, "10.0.0.1", V2, AWAY)), "4: interface 9 is not in this network namespace",
    ),
    "no interface": (port(gid(4, "10.0.0.1", V2, 0)), "4: has no network interface"),
    "zero": (port(Gid(2, bytes(16), V2, HERE)), "2: is zero"),
    "an IPv4 address that is zero": (port(gid(2, "0.0.0.0")), "2: no address of a host"),
    "loopback": (port(gid(2, "127.0.0.1"), gid(3, "::1")), "2, 3: no address of a host"),
    "multicast": (port(gid(2, "ff02::1")), "2: no address of a host"),
    "InfiniBand's type on Ethernet": (port(gid(2, "10.0.0.1", IB)), "2: of type InfiniBand"),
    "RoCE on InfiniBand": (
        port(gid(2, "10.0.0.1"), link=LinkLayer.INFINIBAND), "2: RoCE v2 on InfiniBand",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    looked_at, reason = REFUSED[name]
    choice = choose(looked_at, {1, HERE})
    assert choice.gid is None
    assert reason in choice.reason


TABLE = port(LINK_LOCAL, OLD, gid(2, "10.0.0.1"), gid(4, "10.0.0.9"), gid(6, "2001:db8::9"))


@pytest.mark.parametrize(
    ("wanted", "index", "reason"),
    [
        (["10.0.0.9"], 4, "the address that was asked for"),
        (["2001:db8::9"], 6, "the address that was asked for"),
        (["10.0.0.9", "2001:db8::9"], 4, "the lowest index of 2 such"),
        (["10.0.0.77"], 2, "no GID has 10.0.0.77; RoCE v2 by IPv4"),
        (["fe80::1"], 2, "no GID has fe80::1"),
        ([], 2, "RoCE v2 by IPv4"),
    ],
)
def test_an_address_that_is_asked_for_comes_first(
    wanted: list[str], index: int, reason: str
) -> None:
    choice = choose(TABLE, {HERE}, [ip_address(text) for text in wanted])
    assert choice.gid is not None
    assert choice.gid.index == index
    assert reason in choice.reason


@pytest.mark.parametrize(
    ("insisted", "index", "reason"),
    [
        (None, 2, "RoCE v2 by IPv4"),
        (-1, 2, "RoCE v2 by IPv4"),
        (4, 4, "the configuration asks for it"),
        (0, 0, "the configuration asks for it, though link-local"),
        (1, None, "cannot be used: RoCE v1"),
        (7, None, "GID index 7, which the configuration asks for, is not in its table, which has"
         " 0, 1, 2, 4, 6"),
        (1 << 40, None, "is not in its table"),
    ],
)  # fmt: skip
def test_an_index_that_is_insisted_on_is_checked(
    insisted: int | None, index: int | None, reason: str
) -> None:
    choice = choose(TABLE, {HERE}, (), insisted)
    assert (choice.gid and choice.gid.index) == index
    assert reason in choice.reason


def test_insisting_does_not_bring_a_port_up() -> None:
    choice = choose(port(gid(2, "10.0.0.1"), state="down"), {HERE}, (), 2)
    assert choice.gid is None
    assert "it is down" in choice.reason


def test_what_is_asked_for_does_not_make_a_refused_gid_usable() -> None:
    away = port(gid(2, "10.0.0.1", V2, AWAY), gid(3, "10.0.0.2"))
    choice = choose(away, {HERE}, [ip_address("10.0.0.1")])
    assert choice.gid is not None
    assert choice.gid.index == 3


def test_the_address_of_a_gid() -> None:
    assert gid_address(gid(1, "10.0.0.1")) == ip_address("10.0.0.1")
    assert gid_address(gid(1, "2001:db8::1")) == ip_address("2001:db8::1")


def test_the_whole_table_explained() -> None:
    choices = choose_all([TABLE, port(LINK_LOCAL, number=2, state="down")], {HERE})
    assert explain(choices, {HERE: "eth1"}) == [
        "mlx5_0 port 1 (ethernet, MTU 4096): GID 2, 10.0.0.1: RoCE v2 by IPv4, the lowest index of"
        " 2 such",
        "     0  fe80::1      RoCE v2  eth1        link-local (fe80::/10)",
        "     1  10.0.0.1     RoCE v1  eth1        RoCE v1 does not pass routers;"
        " MemKV uses RoCE v2",
        " *   2  10.0.0.1     RoCE v2  eth1        chosen",
        "     4  10.0.0.9     RoCE v2  eth1        usable, not the best",
        "     6  2001:db8::9  RoCE v2  eth1        usable, not the best",
        "mlx5_0 port 2 (ethernet, MTU 4096): not usable: it is down: is the cable in, the"
        " interface up, the switch port on?",
        "     0  fe80::1      RoCE v2  eth1        link-local (fe80::/10)",
    ]
    unnamed = explain(choose_all([port(gid(0, "fe80::1", IB, 0), link=LinkLayer.INFINIBAND)], ()))
    assert unnamed[1] == " *   0  fe80::1  IB       -           chosen"
