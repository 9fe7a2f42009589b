"""What a script of faults counts, and when it acts."""

import pytest

from memkv_operator.api.names import (
    CLUSTER_ROLE_BINDINGS,
    DAEMON_SETS,
    NAMESPACES,
    NODES,
    PODS,
    POOLS,
    Resource,
)
from memkv_operator.testing.fault_script import (
    Call,
    NthFaults,
    NthOfAll,
    RequestFault,
    WatchEvent,
    WatchFault,
)


@pytest.mark.parametrize(
    "resource", [POOLS, PODS, DAEMON_SETS], ids=["custom", "of the core", "of a group"]
)
def test_calls_name_namespace_and_kind(resource: Resource) -> None:
    for path in (resource.path("ns"), resource.path("ns", "a"), resource.path("ns", "a", "status")):
        call = Call("GET", path, False)
        assert (call.namespace, call.plural) == ("ns", resource.plural)
    everywhere = Call("GET", resource.path(), True)
    assert (everywhere.namespace, everywhere.plural) == ("", resource.plural)


@pytest.mark.parametrize("resource", [NODES, CLUSTER_ROLE_BINDINGS])
def test_calls_of_the_whole_cluster_have_no_namespace(resource: Resource) -> None:
    call = Call("GET", resource.path("", "a"), False)
    assert (call.namespace, call.plural) == ("", resource.plural)


def test_a_namespace_itself_counts_as_in_it() -> None:
    call = Call("GET", NAMESPACES.path("", "ns"), False)
    assert (call.namespace, call.plural) == ("ns", "namespaces")


def test_each_namespace_has_its_own_count_and_watches_have_none() -> None:
    script = NthFaults(requests={"a": (2, RequestFault.CONFLICT)})
    answers = [
        script.answer(Call("GET", PODS.path(namespace), is_watch))
        for namespace, is_watch in (("a", False), ("b", False), ("a", True), ("b", False))
    ]
    assert answers == [None] * 4
    assert script.answer(Call("PUT", PODS.path("a"), False)) is RequestFault.CONFLICT
    assert script.answer(Call("PUT", PODS.path("a"), False)) is None
    assert script.done == {"a"}


def test_an_event_that_is_passed_over_leaves_the_fault_to_the_next() -> None:
    script = NthFaults(events={"a": ("pods", 2, WatchFault.LOST)})
    event = WatchEvent("pods", "a", "x", "MODIFIED")
    assert script.disturb(event) is None
    assert script.disturb(event._replace(plural="services")) is None
    assert script.disturb(event) is WatchFault.LOST
    assert script.disturb(event) is None


def test_of_all_requests_one_fails() -> None:
    script = NthOfAll(2, RequestFault.CUT_BEFORE)
    calls = [Call("GET", NODES.path(), is_watch) for is_watch in (False, True, False)]
    assert [script.answer(call) for call in calls] == [None, RequestFault.CUT_BEFORE, None]
    assert RequestFault.CUT_BEFORE.status == 0
    assert RequestFault.UNAVAILABLE.status == 503
