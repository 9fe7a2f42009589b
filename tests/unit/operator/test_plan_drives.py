"""Which drives a pool gets, and what is said of each that it does not."""

from dataclasses import replace
from typing import Any
from zlib import crc32

import pytest

from memkv_operator.api.drives import DriveRules, Exclusion, Selector
from memkv_operator.plan.disks import Content, Disk
from memkv_operator.plan.drives import Chosen, Drive, DriveState, Neighbourhood, Want, choose
from memkv_operator.plan.node_drives import NodeDrives
from memkv_operator.plan.wiping import unwiped

TIB = 1 << 40
READY, PENDING, DENIED = DriveState.READY, DriveState.PENDING_APPROVAL, DriveState.DENIED
FAULTED, MISSING = DriveState.FAULTED, DriveState.MISSING
UUID, OTHER = "0a" * 16, "0b" * 16
ALONE = Neighbourhood()


def disk(name: str, **changes: Any) -> Disk:
    content = changes.get("content", Content.BLANK)
    print_of = f"{name}:{TIB}:sha256-{crc32(f'{name} {content}'.encode()):08x}"
    return replace(
        Disk(name, f"/dev/disk/by-id/{name}", TIB, print_of, model="ACME X1", serial=f"S-{name}"),
        **changes,
    )


def foreign(name: str, **changes: Any) -> Disk:
    return disk(name, content=Content.FOREIGN, content_description="ext4", **changes)


def memkv(name: str, uuid: str = UUID, **changes: Any) -> Disk:
    return disk(name, content=Content.MEMKV, worker_uuid=uuid, **changes)


def want(**changes: Any) -> Want:
    rules = changes.pop("rules", DriveRules(selector=Selector(transport="any"), takes_blank=True))
    base = Want("ns/a", "uid-a", ("2026-01-01", "a"), "drives.memkv.io/x", rules, 1)
    return replace(base, **changes)


def one(
    disks: list[Disk], given: Want | None = None, around: Neighbourhood = ALONE
) -> dict[str, Drive]:
    drives = choose("n1", disks, [given or want()], around)["uid-a"]
    return {drive.id: drive for drive in drives}


def by_path(*names: str, **changes: Any) -> DriveRules:
    paths = tuple(f"/dev/disk/by-id/{name}" for name in names)
    return DriveRules(paths, takes_blank=True, **changes)


# --- rules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "found", "reason"),
    [
        (Selector(), disk("d"), ""),
        (Selector(), disk("d", transport="sata"), "its transport is sata"),
        (Selector(), disk("d", transport=""), "its transport is unknown"),
        (Selector(transport="any"), disk("d", transport="sata"), ""),
        (Selector(), disk("d", rotational=True), "it is a rotating disk"),
        (Selector(rotational=True), disk("d"), "not a rotating disk"),
        (
            Selector(size_bytes_min=2 * TIB),
            disk("d"),
            "1Ti are less than deviceSelector.minSize 2Ti",
        ),
        (Selector(size_bytes_min=TIB), disk("d"), ""),
        (Selector(model_prefix="ACME"), disk("d"), ""),
        (Selector(model_prefix="Other"), disk("d"), "does not begin with"),
    ],
)
def test_a_selector_takes_what_fits_and_says_what_does_not(
    rules: Selector, found: Disk, reason: str
) -> None:
    row = one([found], want(rules=DriveRules(selector=rules, takes_blank=True)))["d"]
    assert row.state is (DENIED if reason else READY)
    assert reason in row.reason
    assert bool(row.reason) == bool(reason)


def test_device_paths_choose_by_any_stable_name_and_in_their_order() -> None:
    disks = [disk("a"), disk("b", links=("/dev/disk/by-path/pci-1",)), disk("c")]
    rules = DriveRules(("/dev/disk/by-path/pci-1", "/dev/disk/by-id/a"), takes_blank=True)
    rows = one(disks, want(rules=rules, workers=2))
    assert [rows[name].position for name in "abc"] == [1, 0, -1]
    assert rows["c"].reason == "devicePaths does not name it; add /dev/disk/by-id/c to use it"


@pytest.mark.parametrize(
    ("entry", "excluded"),
    [
        (Exclusion(serial="S-d"), True),
        (Exclusion(serial="S-"), False),
        (Exclusion(wwn="eui.1"), True),
        (Exclusion(path="/dev/disk/by-id/d"), True),
        (Exclusion(path="/dev/disk/by-path/p"), True),
        (Exclusion(path="/dev/disk/by-id/e"), False),
        (Exclusion(serial="S-d", nodes=frozenset({"n1"})), True),
        (Exclusion(serial="S-d", nodes=frozenset({"n2"})), False),
    ],
)
@pytest.mark.parametrize("chosen", [False, True], ids=["new", "chosen"])
def test_excluded_devices_are_never_used(entry: Exclusion, excluded: bool, chosen: bool) -> None:
    found = disk("d", wwn="eui.1", links=("/dev/disk/by-path/p",))
    rules = DriveRules(selector=Selector(), excluded=(entry,), takes_blank=True)
    before = (Chosen("d", 0),) if chosen else ()
    row = one([found], want(rules=rules, chosen=before))["d"]
    assert (row.state, row.excluded) == ((DENIED, True) if excluded else (READY, False))


# --- what may be formatted --------------------------------------------------------------------


@pytest.mark.parametrize("takes_blank", [False, True])
@pytest.mark.parametrize("approved", [False, True])
@pytest.mark.parametrize(
    "found", [disk("d"), foreign("d"), memkv("d")], ids=lambda d: d.content.value
)
def test_nothing_is_taken_without_leave(found: Disk, approved: bool, takes_blank: bool) -> None:
    rules = DriveRules(selector=Selector(), takes_blank=takes_blank)
    prints = frozenset({found.fingerprint}) if approved else frozenset()
    row = one([found], want(rules=rules, approved=prints))["d"]
    allowed = approved or (takes_blank and found.content is Content.BLANK)
    assert row.state is (READY if allowed else PENDING)
    assert row.erase == (approved and found.content is Content.FOREIGN)
    assert not row.recorded
    assert bool(row.reason) != allowed


def test_an_approval_is_of_what_was_there_then() -> None:
    row = one([foreign("d")], want(approved=frozenset({disk("d").fingerprint})))["d"]
    assert row.state is PENDING
    assert "it holds ext4: approving its fingerprint ERASES that" in row.reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"unusable_reason": "mounted at /srv"}, "mounted at /srv"),
        ({"error": "media errors: 12"}, "it is faulty: media errors: 12"),
        ({"content": Content.UNKNOWN}, "could not be read"),
        ({"fingerprint": ""}, "could not be read"),
    ],
)
def test_unusable_disks_are_not_even_asked_about(changes: dict[str, Any], reason: str) -> None:
    found = disk("d", **changes)
    row = one([found], want(approved=frozenset({found.fingerprint})))["d"]
    assert row.state is DENIED
    assert reason in row.reason


# --- one drive for each worker ----------------------------------------------------------------


def test_each_worker_gets_one_drive_and_the_rest_hears_how_to_use_it() -> None:
    rows = one([disk(name) for name in "abc"], want(workers=2))
    assert [rows[name].position for name in "abc"] == [0, 1, -1]
    assert rows["c"].state is DENIED
    assert "set workers: 3" in rows["c"].reason
    assert "no" in one([disk(f"{n:02}") for n in range(17)], want(workers=16))["16"].reason


def test_only_as_many_approvals_are_asked_for_as_there_are_workers() -> None:
    disks = [foreign(name) for name in "abc"]
    rows = one(disks, want(workers=1))
    assert [rows[name].state for name in "abc"] == [PENDING, DENIED, DENIED]
    rows = one(disks, want(workers=1, approved=frozenset({disks[2].fingerprint})))
    assert [rows[name].state for name in "abc"] == [DENIED, DENIED, READY]


def test_approved_and_blank_drives_come_before_those_that_wait() -> None:
    rows = one([foreign("a"), disk("b")], want(workers=1))
    assert (rows["a"].state, rows["b"].state) == (DENIED, READY)


def test_a_paused_pool_keeps_and_takes_nothing() -> None:
    rows = one([disk("a"), disk("b")], want(workers=2, chosen=(Chosen("b", 1),), frozen=True))
    assert rows["b"].state is READY
    assert (rows["a"].state, rows["a"].reason) == (DENIED, "the pool is paused")


# --- what was chosen stays chosen -------------------------------------------------------------


def test_chosen_drives_keep_their_positions_whatever_else_appears() -> None:
    rows = one([disk(name) for name in "0abc"], want(workers=2, chosen=(Chosen("b", 1),)))
    assert (rows["b"].position, rows["b"].recorded) == (1, True)
    assert (rows["0"].position, rows["0"].recorded) == (0, False)


def test_chosen_drives_stay_when_the_rules_change() -> None:
    rules = by_path("other")
    rows = one([memkv("d"), disk("other")], want(rules=rules, chosen=(Chosen("d", 0),)))
    assert (rows["d"].state, rows["other"].state) == (READY, DENIED)


def test_fewer_workers_let_the_last_drives_go_and_keep_the_first() -> None:
    chosen = (Chosen("a", 0), Chosen("b", 1))
    rows = one([memkv("a"), memkv("b", OTHER)], want(workers=1, chosen=chosen))
    assert (rows["a"].position, rows["b"].position) == (0, -1)
    rows = one([memkv("b", OTHER)], want(workers=1, chosen=(Chosen("b", 3),)))
    assert rows["b"].position == 0


def test_a_chosen_drive_that_is_gone_keeps_its_place_until_it_is_excluded() -> None:
    chosen = (Chosen("a", 0, "/dev/disk/by-id/a", TIB, "a:1:sha256-ab12", UUID),)
    rows = one([disk("b")], want(chosen=chosen))
    assert (rows["a"].state, rows["a"].position, rows["a"].recorded) == (MISSING, 0, True)
    assert rows["b"].state is DENIED
    rules = DriveRules(
        selector=Selector(), takes_blank=True, excluded=(Exclusion(path="/dev/disk/by-id/a"),)
    )
    rows = one([disk("b")], want(chosen=chosen, rules=rules))
    assert "a" not in rows
    assert rows["b"].state is READY


@pytest.mark.parametrize(
    "found", [memkv("d", error="12 media errors"), disk("d", content=Content.UNKNOWN)]
)
def test_a_faulty_drive_is_not_handed_out_and_keeps_its_place(found: Disk) -> None:
    rows = one([found, disk("e")], want(chosen=(Chosen("d", 0, fingerprint="f"),)))
    assert (rows["d"].state, rows["d"].position) == (FAULTED, 0)
    assert rows["e"].state is DENIED


def test_a_drive_that_its_own_pod_holds_is_not_faulty() -> None:
    found = disk(
        "d", content=Content.UNKNOWN, fingerprint="", assigned=True, unusable_reason="in use"
    )
    row = one([found], want(chosen=(Chosen("d", 0, fingerprint="f", worker_uuid=UUID),)))["d"]
    assert (row.state, row.fingerprint, row.worker_uuid) == (READY, "f", UUID)


@pytest.mark.parametrize("approved", [False, True])
def test_a_chosen_drive_that_somebody_formatted_is_not_erased_unasked(approved: bool) -> None:
    found = foreign("d")
    prints = frozenset({found.fingerprint}) if approved else frozenset()
    row = one([found], want(chosen=(Chosen("d", 0),), approved=prints))["d"]
    assert (row.state, row.erase) == ((READY, True) if approved else (PENDING, False))
    assert row.position == 0
    mounted = replace(found, unusable_reason="mounted at /srv")
    row = one([mounted], want(chosen=(Chosen("d", 0),), approved=prints))["d"]
    assert (row.state, row.erase, row.position) == (DENIED, False, -1)


# --- identity follows the drive ---------------------------------------------------------------

OURS = Neighbourhood({UUID: "ns/a"})


def test_a_drive_that_holds_the_pools_worker_is_taken_over_without_approval() -> None:
    rules = DriveRules(selector=Selector())
    row = one([memkv("d")], want(rules=rules), OURS)["d"]
    assert (row.state, row.position, row.erase, row.recorded) == (READY, 0, False, False)


def test_a_chosen_drive_that_comes_back_with_an_unknown_store_waits_for_approval() -> None:
    """Also at the next looks, when the row is what was written of it."""
    found, chosen = memkv("d", OTHER), Chosen("d", 0, worker_uuid=UUID)
    row = one([found], want(chosen=(chosen,)))["d"]
    assert (row.state, row.position, row.worker_uuid) == (PENDING, 0, UUID)
    assert "takes it over as it is" in row.reason
    row = one([found], want(chosen=(chosen,), frozen=True, wipes=True))["d"]
    assert unwiped(NodeDrives("a-n1", "ns", (row,))) == []
    row = one([found], want(chosen=(chosen,), approved=frozenset({found.fingerprint})))["d"]
    assert (row.state, row.erase, row.worker_uuid) == (READY, False, OTHER)
    row = one([found], want(chosen=(chosen,)), Neighbourhood({OTHER: "ns/a"}))["d"]
    assert row.state is READY
    assert one([found], want(chosen=(Chosen("d", 0),)))["d"].state is READY  # just formatted


def test_a_drive_that_moved_leaves_its_old_node() -> None:
    gone = (Chosen("d", 0, worker_uuid=UUID),)
    around = Neighbourhood({UUID: "ns/a"}, {}, {UUID: "n2"})
    assert one([], want(chosen=gone), around) == {}
    assert one([], want(chosen=gone), OURS)["d"].state is MISSING


def test_a_drive_with_blocks_of_another_pool_is_left_alone() -> None:
    around = Neighbourhood({UUID: "ns/b"})
    found = memkv("d")
    for chosen in ((), (Chosen("d", 0),)):
        row = one([found], want(approved=frozenset({found.fingerprint}), chosen=chosen), around)[
            "d"
        ]
        assert (row.state, row.claimed_by) == (DENIED, "ns/b")
        assert "it holds blocks of pool ns/b" in row.reason


def test_a_copied_drive_is_used_once() -> None:
    rows = one([memkv("a"), memkv("b")], want(workers=2), OURS)
    assert [rows[name].state for name in "ab"] == [READY, DENIED]
    assert "a copy of a" in rows["b"].reason


@pytest.mark.parametrize(("keeper", "state"), [("n1", READY), ("n2", DENIED), ("", DENIED)])
def test_a_disk_that_several_nodes_see_is_used_by_one(keeper: str, state: DriveState) -> None:
    found = disk("d", wwn="eui.7")
    row = one([found], want(), Neighbourhood(keepers={"eui.7": keeper}))["d"]
    assert row.state is state


# --- two pools --------------------------------------------------------------------------------

YOUNGER: dict[str, Any] = {"pool": "ns/b", "pool_uid": "uid-b", "rank": ("2026-02-02", "b")}


def both(
    disks: list[Disk], older: Want, younger: Want
) -> tuple[dict[str, Drive], dict[str, Drive]]:
    rows = choose("n1", disks, [younger, older], ALONE)
    first, second = ({d.id: d for d in rows[uid]} for uid in ("uid-a", "uid-b"))
    return first, second


def test_the_older_pool_gets_what_both_name() -> None:
    older, younger = both([disk("d")], want(), want(**YOUNGER, rules=by_path("d")))
    assert older["d"].state is READY
    assert (younger["d"].state, younger["d"].claimed_by) == (DENIED, "ns/a")


def test_the_older_pool_is_asked_first_and_the_younger_gets_the_rest() -> None:
    rules = DriveRules(selector=Selector())
    disks = [foreign("a"), foreign("b")]
    older, younger = both(disks, want(rules=rules), want(**YOUNGER, rules=rules))
    assert (older["a"].state, younger["a"].state) == (PENDING, DENIED)
    assert (older["b"].state, younger["b"].state) == (DENIED, PENDING)


def test_a_younger_pool_keeps_what_it_has_before_the_older_one_grows() -> None:
    older, younger = both(
        [memkv("a"), memkv("b", OTHER)],
        want(workers=2, chosen=(Chosen("a", 0),)),
        want(**YOUNGER, chosen=(Chosen("b", 0),)),
    )
    assert (older["b"].state, older["b"].claimed_by) == (DENIED, "ns/b")
    assert younger["b"].state is READY


def test_every_disk_that_is_not_used_has_a_reason() -> None:
    disks = [
        disk("a"), disk("b"), foreign("c"), memkv("d"), disk("e", rotational=True),
        disk("f", error="dead"), disk("g", unusable_reason="root disk"),
    ]  # fmt: skip
    rows = one(disks, want(chosen=(Chosen("gone", 5),), workers=2))
    assert rows.keys() >= {found.id for found in disks}
    for row in rows.values():
        assert bool(row.reason) == (row.state is not READY), row
