"""How fast blocks are pulled."""

from memkv.limits import MIB
from memkv.node.moves.pacer import NS_PER_S, Pacer


class Scene:
    """A clock and what clients were served, both set by the test."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.served_bytes = 0
        self.pacer = Pacer(
            lambda: self.now_ns, lambda: self.served_bytes,
            bytes_per_s_max=100 * MIB, bytes_per_s_busy=10 * MIB,
        )  # fmt: skip

    def took(self, size_bytes: int, after_s: float = 0) -> float:
        self.now_ns += int(after_s * NS_PER_S)
        return self.pacer.took(size_bytes)


def test_rate_is_never_over_the_limit() -> None:
    scene = Scene()
    total, waited = 0, 0.0
    for _ in range(20):
        pause = scene.took(10 * MIB)
        scene.now_ns += int(pause * NS_PER_S)
        waited += pause
        total += 10 * MIB
    assert abs(waited - total / (100 * MIB)) < 0.001


def test_time_that_passed_counts_and_an_idle_time_saves_nothing_up() -> None:
    scene = Scene()
    scene.took(50 * MIB)
    assert abs(scene.took(10 * MIB, after_s=0.4) - 0.2) < 0.001
    assert abs(scene.took(10 * MIB, after_s=60) - 0.1) < 0.001


def test_pulls_yield_while_clients_are_served() -> None:
    scene = Scene()
    scene.took(1, after_s=1)
    scene.served_bytes += 500 * MIB
    assert abs(scene.took(10 * MIB, after_s=1) - 1.0) < 0.001
    assert abs(scene.took(10 * MIB, after_s=2) - 0.1) < 0.001
    scene.served_bytes += 1 * MIB
    assert abs(scene.took(10 * MIB, after_s=2) - 0.1) < 0.001
