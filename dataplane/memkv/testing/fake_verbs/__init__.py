"""RDMA devices without any device: `memkv.rdma.verbs` in one process, as strict as a good NIC.

A `FakeFabric` holds adapters and moves payload between real addresses of this process by a thread
of its own, in pieces, so that what is cut in the middle is cut in the middle. `FakeVerbs` is what
one machine sees of it.

What it takes from measurements on soft-RoCE: requests to a queue pair that is gone never complete
by themselves, and a broken queue pair sends no event. What it does better, as good NICs do: windows
have bounds, and only regions of the window's own protection domain can be bound.
"""

from memkv.testing.fake_verbs.device import FakeDevice, FakeVerbs
from memkv.testing.fake_verbs.fabric import FakeFabric
from memkv.testing.fake_verbs.knobs import Knobs, Piece, Registration
from memkv.testing.fake_verbs.memory import FakeRegion, FakeWindow
from memkv.testing.fake_verbs.queue_pair import FakeQueuePair

__all__ = [
    "FakeDevice",
    "FakeFabric",
    "FakeQueuePair",
    "FakeRegion",
    "FakeVerbs",
    "FakeWindow",
    "Knobs",
    "Piece",
    "Registration",
]
