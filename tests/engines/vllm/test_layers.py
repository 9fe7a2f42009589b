"""Layers that wait for their own part of a load: the same answers, and as many whatever is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from memkv.limits import KIB
from memkv.testing.proxied_pool import Pair, Prompt, ProxiedPool, StartEngine
from memkv.testing.proxy import faithful

LAYERS = 4
BLOCK_BYTES = 32 * LAYERS * 4 * 2 * 64 * 4  # tokens, layers, heads, K and V, elements, float32

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def pair(start: StartEngine) -> Pair:
    """Two engines alike, but for the second one's memory: it holds few requests at once.

    A step gives up before the client does, so that what the client still loads comes late. Floats
    are long: who computes together with others, or anew, rounds otherwise, and must answer alike.
    """
    connector = {"pipeline_layers": 1, "load_deadline_ms": 10_000}
    common = {"connector": connector, "async_scheduling": False, "dtype": "float32"}
    pair = start("first", **common), start("second", **common, num_gpu_blocks_override=48)
    for engine in pair:
        engine.wait_ready()
        assert "pipeline_layers is ignored" not in engine.log.read_text()
    return pair


def flip(piece: bytearray) -> None:
    piece[len(piece) // 2] ^= 1


class FlipOne:
    """Flips bits of the first piece that it sees, whenever that is sent again.

    What is sent again may be cut at other places: some mark of a row of them is whole anywhere.
    """

    def __init__(self) -> None:
        self._marks: list[bytes] = []

    def __call__(self, piece: bytearray) -> None:
        if not self._marks:
            middle = len(piece) // 2
            row = (bytes(piece[at : at + 64]) for at in range(middle, middle + 2 * KIB, 64))
            self._marks = [mark for mark in row if len(set(mark)) > 8]  # KV, no zeros of a header
        self.flip_again(piece)

    def flip_again(self, piece: bytearray) -> None:
        for mark in self._marks:
            if (at := piece.find(mark)) >= 0:
                piece[at] ^= 1
                return


class Disturbed:
    """Does something to the parts whose turn it is, of those that the pool sends."""

    def __init__(
        self, proxied: ProxiedPool, turns: range, disturb: Callable[[bytearray], None] = flip
    ) -> None:
        self._proxied = proxied
        self._turns = turns
        self._disturb = disturb
        self.sent = 0
        self.times = 0

    def __enter__(self) -> Disturbed:
        for proxy in self._proxied.proxies:
            proxy.fault = self._fault
        return self

    def __exit__(self, *_: object) -> None:
        for proxy in self._proxied.proxies:
            proxy.fault = faithful

    def _fault(self, _: int, piece: bytearray) -> bool:
        is_payload = len(piece) > 8 * KIB
        if is_payload and self.sent in self._turns:
            self.times += 1
            self._disturb(piece)
        elif isinstance(self._disturb, FlipOne):
            self._disturb.flip_again(piece)
        self.sent += is_payload
        return True


def test_a_second_process_answers_from_parts_that_the_first_one_stored(
    pair: Pair, prompt: Prompt
) -> None:
    first, second = pair
    tokens = prompt(1, 500)
    computed = first.generate(tokens)
    assert computed.cached == [0]
    again = first.generate(tokens)
    loaded = second.generate(tokens)
    assert loaded.cached == [480]
    assert loaded.reasons() == {"present": 15 * LAYERS, "loaded_bytes": 15 * BLOCK_BYTES}
    assert loaded.tokens == computed.tokens
    # The same KV gives the same arithmetic as the engine's own cache, to the last bit.
    assert loaded.logprobs == again.logprobs


def test_what_a_step_computes_behind_a_load_is_stored(pair: Pair, prompt: Prompt) -> None:
    first, second = pair
    head, tail = prompt(2, 320), prompt(3, 200)
    first.generate(head)
    answer = second.generate(head + tail, max_tokens=1)  # over with the very step that loads
    assert answer.cached == [320]
    second.generate(prompt(4, 20))  # its stores go out with a later step
    theirs = first.generate(head + tail)
    assert theirs.cached == [512]
    assert theirs.tokens[0][0] == answer.tokens[0][0]


@pytest.mark.parametrize("begin", [0, 7, 30])
@pytest.mark.parametrize("extent", ["one part", "all that follow"])
def test_parts_with_flipped_bits_are_computed_anew(
    pair: Pair, proxied: ProxiedPool, prompt: Prompt, begin: int, extent: str
) -> None:
    first, second = pair
    tokens = prompt(10 + begin + 100 * len(extent), 600)
    computed = first.generate(tokens)
    turns = range(begin, 100_000)
    with Disturbed(proxied, turns, FlipOne() if extent == "one part" else flip) as flips:
        answer = second.generate(tokens)
    assert flips.times
    assert answer.reasons()["corrupt"] == 1
    assert answer.reasons().get("loaded_bytes", 0) < 18 * BLOCK_BYTES
    assert answer.tokens == computed.tokens
    assert second.generate(tokens).tokens == computed.tokens


def test_requests_with_one_beginning_share_no_block_that_failed(
    pair: Pair, proxied: ProxiedPool, prompt: Prompt
) -> None:
    first, second = pair
    head = prompt(60, 320)
    prompts = [head + prompt(61 + number, 60) for number in range(3)]
    computed = [first.generate(tokens) for tokens in prompts]
    with Disturbed(proxied, range(5, 100_000), FlipOne()) as flips:
        answer = second.generate(*prompts)
    assert flips.times
    assert answer.tokens == [one.tokens[0] for one in computed]


def test_requests_that_crowd_each_other_out_answer_as_alone(pair: Pair, prompt: Prompt) -> None:
    first, second = pair
    prompts = [prompt(70 + number, 350) for number in range(6)]
    alone = [first.generate(tokens, max_tokens=40) for tokens in prompts]
    crowd = second.generate(*prompts, max_tokens=40)
    assert crowd.preemptions
    assert crowd.tokens == [one.tokens[0] for one in alone]


def test_what_comes_after_the_deadline_reaches_no_block(
    pair: Pair, proxied: ProxiedPool, prompt: Prompt
) -> None:
    first, second = pair
    tokens = prompt(80, 600)
    computed = first.generate(tokens)

    def hold(_: bytearray) -> None:
        for proxy in proxied.proxies:
            proxy.hold()

    try:
        with Disturbed(proxied, range(20, 1000), hold) as held:
            answer = second.generate(tokens, max_tokens=1)
    finally:
        for proxy in proxied.proxies:
            proxy.release()
    assert held.times
    assert answer.reasons()["timeout"] == 1
    assert answer.tokens[0][0] == computed.tokens[0][0]
    for _ in range(3):  # late answers come; the blocks that were computed are the engine's own
        assert second.generate(tokens).tokens == computed.tokens


def test_a_pool_that_is_killed_in_the_middle_fails_no_request(
    pair: Pair, proxied: ProxiedPool, prompt: Prompt
) -> None:
    first, second = pair
    prompts = [prompt(40 + number, 900) for number in range(3)]
    computed = [first.generate(tokens) for tokens in prompts]

    def kill(_: bytearray) -> None:
        for node in proxied.pool.nodes:
            proxied.pool.kill(node)

    with Disturbed(proxied, range(10, 11), kill) as killed:
        answer = second.generate(*prompts)
    assert killed.times
    assert answer.tokens == [one.tokens[0] for one in computed]
    fresh = prompt(50, 300)
    assert second.generate(fresh).tokens == first.generate(fresh).tokens
