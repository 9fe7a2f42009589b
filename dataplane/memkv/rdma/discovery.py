"""Which ports of RDMA devices are usable, and by which GID; with a reason for every no.

Pure: it looks at `Port` values. A GID's index is no identity: it differs from host to host and from
pod to pod, and changes with the interface's addresses. So it is looked up anew for each connection,
peers are told the GID itself, and a configured index is checked before it is believed.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address

from memkv.rdma.verbs import Gid, GidType, LinkLayer, Port

Address = IPv4Address | IPv6Address


class Fabric(Enum):
    """Of which network ports are used: a host may have ports of both."""

    AUTO = "auto"
    """Of any."""
    ROCE_V2 = "rocev2"
    INFINIBAND = "infiniband"

    def takes(self, layer: LinkLayer) -> bool:
        """Return whether a port of this link layer is one of the fabric."""
        return self is Fabric.AUTO or layer is _LAYERS[self]


_LAYERS = {Fabric.ROCE_V2: LinkLayer.ETHERNET, Fabric.INFINIBAND: LinkLayer.INFINIBAND}


@dataclass(frozen=True, slots=True)
class Look:
    """One GID, judged. `refused` is empty for one that may be chosen; `preference`: the lower the
    better."""

    gid: Gid
    refused: str
    preference: int


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to be used of a port. `gid` is None when nothing is, and `reason` says why."""

    port: Port
    gid: Gid | None
    reason: str
    table: tuple[Look, ...]


def choose(
    port: Port,
    interfaces: Collection[int],
    wanted: Collection[Address] = (),
    gid_index: int | None = None,
) -> Choice:
    """Choose a GID of a port. `interfaces`: indexes of those in this network namespace; `wanted`:
    addresses to prefer; `gid_index`: what a person insists on, None or negative for nothing."""
    table = tuple(look(port, gid, interfaces, wanted) for gid in port.gids)
    if refused := _port_refused(port):
        return Choice(port, None, refused, table)
    if gid_index is not None and gid_index >= 0:
        return _insisted(port, table, gid_index)
    usable = [found for found in table if not found.refused]
    if not usable:
        return Choice(port, None, _none_usable(table), table)
    best = min(usable, key=lambda found: (found.preference, found.gid.index))
    return Choice(port, best.gid, _why(best, usable, wanted), table)


def choose_all(
    ports: Iterable[Port],
    interfaces: Collection[int],
    wanted: Collection[Address] = (),
    gid_index: int | None = None,
) -> list[Choice]:
    """Choose for each port."""
    return [choose(port, interfaces, wanted, gid_index) for port in ports]


def look(
    port: Port, gid: Gid, interfaces: Collection[int], wanted: Collection[Address] = ()
) -> Look:
    """Judge one GID by itself."""
    address = gid_address(gid)
    if refused := _type_refused(port, gid):
        return Look(gid, refused, NEVER)
    if port.link_layer is LinkLayer.INFINIBAND:
        return Look(gid, "", GIVEN if address in wanted else PLAIN)
    if refused := _address_refused(address):
        return Look(gid, refused, NEVER)
    if gid.interface == 0:
        return Look(gid, "has no network interface", NEVER)
    if gid.interface not in interfaces:
        text = f"interface {gid.interface} is not in this network namespace"
        return Look(gid, text, NEVER)
    if address in wanted:
        return Look(gid, "", GIVEN)
    return Look(gid, "", PLAIN if isinstance(address, IPv4Address) else SECOND)


GIVEN, PLAIN, SECOND, NEVER = range(4)


def gid_address(gid: Gid) -> Address:
    """A GID is an IPv6 address, which may hold one of IPv4."""
    address = IPv6Address(gid.value)
    return address.ipv4_mapped or address


def explain(
    choices: Sequence[Choice], interface_names: Mapping[int, str] | None = None
) -> list[str]:
    """The whole table as lines for people: every port, every GID, and why or why not."""
    names = interface_names or {}
    gids = [found.gid for choice in choices for found in choice.table]
    width = max((len(str(gid_address(gid))) for gid in gids), default=0)
    lines = []
    for choice in choices:
        lines.append(port_line(choice))
        for found in choice.table:
            gid = found.gid
            interface = names.get(gid.interface, str(gid.interface)) if gid.interface else "-"
            is_chosen = choice.gid is not None and choice.gid.index == gid.index
            verdict = "chosen" if is_chosen else found.refused or "usable, not the best"
            mark = "*" if is_chosen else " "
            lines.append(
                f" {mark} {gid.index:3}  {gid_address(gid)!s:{width}}  {gid.type.value:7}"
                f"  {interface:10}  {verdict}"
            )
    return lines


def port_line(choice: Choice) -> str:
    """One port in one line, with the outcome."""
    port = choice.port
    known = f"{port.device} port {port.number} ({port.link_layer.value}, MTU {port.mtu_bytes})"
    if choice.gid is None:
        return f"{known}: not usable: {choice.reason}"
    return f"{known}: GID {choice.gid.index}, {gid_address(choice.gid)}: {choice.reason}"


def _port_refused(port: Port) -> str:
    if not port.is_active:
        return f"it is {port.state}: is the cable in, the interface up, the switch port on?"
    if port.link_layer is LinkLayer.OTHER:
        return "it is neither InfiniBand nor Ethernet"
    if not port.gids:
        return "its GID table is empty: give its network interface an address"
    return ""


def _type_refused(port: Port, gid: Gid) -> str:
    if not any(gid.value):
        return "is zero"
    if port.link_layer is LinkLayer.INFINIBAND:
        return "" if gid.type is GidType.INFINIBAND else f"{gid.type.value} on InfiniBand"
    if gid.type is GidType.ROCE_V1:
        return "RoCE v1 does not pass routers; MemKV uses RoCE v2"
    return "" if gid.type is GidType.ROCE_V2 else "of type InfiniBand on Ethernet"


def _address_refused(address: Address) -> str:
    if address.is_link_local:
        return f"link-local ({'169.254.0.0/16' if address.version == 4 else 'fe80::/10'})"
    if address.is_loopback or address.is_multicast or address.is_unspecified:
        return "no address of a host"
    return ""


def _none_usable(table: Sequence[Look]) -> str:
    refusals: dict[str, list[str]] = {}
    for found in table:
        refusals.setdefault(found.refused, []).append(str(found.gid.index))
    said = "; ".join(f"{', '.join(indexes)}: {text}" for text, indexes in refusals.items())
    return f"none of its {len(table)} GIDs fits ({said})"


def _why(best: Look, usable: Sequence[Look], wanted: Collection[Address]) -> str:
    address = gid_address(best.gid)
    rivals = sum(found.preference == best.preference for found in usable) - 1
    tie = f", the lowest index of {rivals + 1} such" if rivals else ""
    if best.preference == GIVEN:
        return f"the address that was asked for{tie}"
    missed = f"no GID has {' or '.join(str(one) for one in wanted)}; " if wanted else ""
    if best.gid.type is GidType.INFINIBAND:
        return f"{missed}InfiniBand{tie}"
    return f"{missed}RoCE v2 by {'IPv4' if address.version == 4 else 'IPv6'}{tie}"


def _insisted(port: Port, table: Sequence[Look], index: int) -> Choice:
    """A person may insist on an address that would not be chosen, not on what cannot work."""
    named = f"GID index {index}, which the configuration asks for,"
    found = next((one for one in table if one.gid.index == index), None)
    if found is None:
        there = ", ".join(str(one.gid.index) for one in table)
        text = f"{named} is not in its table, which has {there}; without one MemKV chooses itself"
        return Choice(port, None, text, tuple(table))
    if refused := _type_refused(port, found.gid):
        text = f"{named} cannot be used: {refused}; without one MemKV chooses itself"
        return Choice(port, None, text, tuple(table))
    though = f", though {found.refused}" if found.refused else ""
    return Choice(port, found.gid, f"the configuration asks for it{though}", tuple(table))
