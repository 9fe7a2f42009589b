"""nodeGroups[].storage, as far as it is about drives."""

from dataclasses import dataclass

from memkv.metadata.kubernetes.json_values import Reader
from memkv_operator.api.quantity import bytes_of

ANY_TRANSPORT = "any"


@dataclass(frozen=True, slots=True)
class Exclusion:
    """A disk that is never used, by exactly one of its names."""

    serial: str = ""
    wwn: str = ""
    path: str = ""
    nodes: frozenset[str] = frozenset()
    """Where this holds; empty: everywhere."""
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Selector:
    """What a disk must be like."""

    rotational: bool = False
    size_bytes_min: int = 0
    model_prefix: str = ""
    transport: str = "nvme"


@dataclass(frozen=True, slots=True)
class DriveRules:
    """Which disks of a node a group may use, and when they may be formatted."""

    paths: tuple[str, ...] = ()
    """Stable names; used when there is no selector."""
    selector: Selector | None = None
    excluded: tuple[Exclusion, ...] = ()
    takes_blank: bool = False
    """initPolicy IfBlank: blank disks need no approval."""


def read_drive_rules(storage: Reader) -> DriveRules | None:
    """Return what a group's storage says of drives, None when it has none. FieldInvalid."""
    if not storage.has("devicePaths") and not storage.has("deviceSelector"):
        return None
    selector = None
    if storage.has("deviceSelector"):
        given = storage.object("deviceSelector")
        selector = Selector(
            given.flag("rotational"),
            bytes_of(given.amount("minSize"), given.place("minSize")),
            given.text("modelPrefix"),
            given.text("transport", "nvme"),
        )
    return DriveRules(
        storage.texts("devicePaths"),
        selector,
        tuple(_exclusion(item) for item in storage.objects("excludedDevices")),
        storage.text("initPolicy", "RequireApproval") == "IfBlank",
    )


def _exclusion(item: Reader) -> Exclusion:
    return Exclusion(
        item.text("serial"),
        item.text("wwn"),
        item.text("path"),
        frozenset(item.texts("nodes")),
        item.text("comment"),
    )
