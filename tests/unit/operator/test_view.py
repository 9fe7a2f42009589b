"""What the operator knows of the cluster, whatever order it hears it in."""

from memkv.metadata.kubernetes.json_values import JsonObject
from memkv.metadata.kubernetes.listing import Listing
from memkv_operator.api.names import LABEL_COMPONENT, LABEL_POOL, NODES, PODS, POOLS
from memkv_operator.run.view import ClusterView


def pod(name: str, version: int, namespace: str = "a") -> JsonObject:
    return {
        "metadata": {
            "name": name, "namespace": namespace, "uid": name, "resourceVersion": str(version),
            "labels": {LABEL_POOL: "p", LABEL_COMPONENT: "node"},
        },
        "spec": {"nodeName": "n1"},
    }  # fmt: skip


def pods(view: ClusterView, pool: str) -> set[str]:
    return {one.name for one in view.pods_of(pool)}


def test_what_is_listed_no_more_is_gone() -> None:
    heard: list[str] = []
    view = ClusterView(heard.append)
    view.replaced(PODS, "", Listing((pod("one", 1), pod("two", 2)), "5"))
    heard.clear()
    view.replaced(PODS, "", Listing((pod("two", 2),), "9"))
    assert pods(view, "a/p") == {"two"}
    assert heard == ["a/p"]


def test_what_came_while_the_list_was_on_its_way_stays() -> None:
    view = ClusterView(lambda key: None)
    view.changed(PODS, pod("new", 12))
    view.replaced(PODS, "", Listing((pod("old", 3),), "10"))
    assert pods(view, "a/p") == {"new", "old"}
    view.replaced(PODS, "", Listing((pod("old", 3),), "13"))
    assert pods(view, "a/p") == {"old"}


def test_a_list_of_one_namespace_says_nothing_of_another() -> None:
    view = ClusterView(lambda key: None)
    view.replaced(PODS, "a", Listing((pod("one", 1, "a"),), "5"))
    view.replaced(PODS, "b", Listing((pod("two", 2, "b"),), "5"))
    assert (pods(view, "a/p"), pods(view, "b/p")) == ({"one"}, {"two"})
    view.replaced(PODS, "a", Listing((), "6"))
    assert (pods(view, "a/p"), pods(view, "b/p")) == (set(), {"two"})


def test_pools_and_nodes_that_vanished_unseen_are_gone() -> None:
    view = ClusterView(lambda key: None)
    pools: list[JsonObject] = [
        {"metadata": {"name": "p", "namespace": n, "resourceVersion": "1"}} for n in ("a", "b")
    ]
    view.replaced(POOLS, "a", Listing((pools[0],), "2"))
    view.replaced(POOLS, "b", Listing((pools[1],), "2"))
    view.replaced(NODES, "", Listing(({"metadata": {"name": "n", "resourceVersion": "1"}},), "2"))
    assert (set(view.pools), set(view.kube_nodes)) == ({"a/p", "b/p"}, {"n"})
    view.replaced(POOLS, "b", Listing((), "3"))
    view.replaced(NODES, "", Listing((), "3"))
    assert (set(view.pools), set(view.kube_nodes)) == ({"a/p"}, set())


def test_an_older_state_changes_nothing() -> None:
    view = ClusterView(lambda key: None)
    view.changed(PODS, pod("one", 7))
    older = {**pod("one", 6), "spec": {"nodeName": "elsewhere"}}
    view.changed(PODS, older)
    assert [one.node_name for one in view.pods_of("a/p")] == ["n1"]
