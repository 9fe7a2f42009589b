"""Whether a disk is one that a node group asks for, and if not, why."""

from memkv_operator.api.drives import ANY_TRANSPORT, DriveRules, Exclusion, Selector
from memkv_operator.api.quantity import format_bytes_roughly
from memkv_operator.plan.disks import Disk


def paths_of(disk: Disk) -> tuple[str, ...]:
    """Return every stable path of a disk."""
    return (disk.path, *disk.links)


def exclusion_of(rules: DriveRules, node: str, disk: Disk) -> Exclusion | None:
    """Return the entry of excludedDevices that names a disk, None when none does."""
    for entry in rules.excluded:
        if entry.nodes and node not in entry.nodes:
            continue
        named = (
            (entry.serial and entry.serial == disk.serial)
            or (entry.wwn and entry.wwn == disk.wwn)
            or (entry.path and entry.path in paths_of(disk))
        )
        if named:
            return entry
    return None


def excluded_reason(entry: Exclusion) -> str:
    """Return what is said of an excluded disk."""
    comment = f" ({entry.comment})" if entry.comment else ""
    return f"excludedDevices names it{comment}"


def mismatch(rules: DriveRules, disk: Disk) -> str:
    """Return why the group does not ask for this disk, "" when it does."""
    if rules.selector is not None:
        return _selector_mismatch(rules.selector, disk)
    if any(path in rules.paths for path in paths_of(disk)):
        return ""
    return f"devicePaths does not name it; add {disk.path} to use it"


def order_of(rules: DriveRules, disk: Disk) -> tuple[int, str]:
    """Return what disks are taken by, the lowest first: as devicePaths lists them, then by id."""
    places = [rules.paths.index(path) for path in paths_of(disk) if path in rules.paths]
    return min(places, default=len(rules.paths)), disk.id


def _selector_mismatch(selector: Selector, disk: Disk) -> str:
    if disk.rotational != selector.rotational:
        kind = "a rotating disk" if disk.rotational else "not a rotating disk"
        return f"it is {kind}, and deviceSelector.rotational is {str(selector.rotational).lower()}"
    if selector.transport not in (ANY_TRANSPORT, disk.transport):
        return (
            f"its transport is {disk.transport or 'unknown'}, and deviceSelector.transport is "
            f"{selector.transport}"
        )
    if disk.size_bytes < selector.size_bytes_min:
        return (
            f"its {format_bytes_roughly(disk.size_bytes)} are less than deviceSelector.minSize "
            f"{format_bytes_roughly(selector.size_bytes_min)}"
        )
    if not disk.model.startswith(selector.model_prefix):
        return (
            f"its model {disk.model!r} does not begin with deviceSelector.modelPrefix "
            f"{selector.model_prefix!r}"
        )
    return ""
