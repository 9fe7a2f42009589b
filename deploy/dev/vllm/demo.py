"""Two vLLM processes and a pool: what the second one saves, measured and checked.

    demo.py [--tokens 4000] [--rounds 3] [--pairs 10] [--json FILE] ...

The first process computes a prompt and its blocks go to the pool; the second one, which never saw
the prompt, loads them. Both answer every prompt again from their own prefix cache: the best that
any cache can do. In the end the pool is killed in the middle of a load.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from memkv.integrations.vllm.settings import DEADLINE_MS, LOAD_DEADLINE_MS, LOOKUP_DEADLINE_MS
from memkv.limits import GIB, MIB
from memkv.localpool.pool import LocalPool, PoolPlan
from memkv.testing.vllm_process import Generated, VllmProcess

TOLD_BETTER_MIN = 8.0  # than computed
OF_OWN_CACHE_MAX = 1.5
SLOWER_MAX = 0.10
CLIENT_SHARE_MAX = 0.03
DECODED = 48
DECODE_PROMPT = 1025  # all but one token from the own cache
DEADLINES = {
    "lookup_deadline_ms": LOOKUP_DEADLINE_MS, "deadline_ms": DEADLINE_MS,
    "load_deadline_ms": LOAD_DEADLINE_MS,
}
COMPUTED_NOISE = 1.3  # computing a prompt twice takes times that differ by so much here
ROUNDING_LOGPROB = 0.02  # of a first token; KV of other tokens moves it by far more
# 9 degrees of freedom, one side: ten pairs
T_95 = {2: 6.31, 3: 2.92, 4: 2.35, 5: 2.13, 6: 2.02, 7: 1.94, 8: 1.89, 9: 1.86, 10: 1.83}


@dataclass
class Figures:
    """Seconds to the first token, and what else was measured."""

    computed: list[float] = field(default_factory=list)
    loaded: list[float] = field(default_factory=list)
    own_cache: list[float] = field(default_factory=list)
    loaded_bytes: int = 0
    tokens_equal: bool = True
    """Are they, and their probabilities, those of the engine's own cache?"""
    computed_equal: bool = True
    """Are they those that a prompt computed whole gives? vLLM's own cache may round otherwise."""
    slowdowns: list[float] = field(default_factory=list)
    all_stored: bool = True
    """Had the pool all blocks that were stored beside decoding?"""
    client_shares: list[float] = field(default_factory=list)
    """Of the engine's CPU time while it decoded and stored."""
    load_shares: list[float] = field(default_factory=list)
    """While it loaded and computed one token."""
    late_s: list[float] = field(default_factory=list)
    """Of the two requests after the pool was killed."""
    answered_after_kill: bool = False


def main() -> int:
    parser = argparse.ArgumentParser(description="Two vLLM processes share KV through a pool")
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--block-tokens", type=int, default=128)
    parser.add_argument("--flash-gib", type=int, default=2, help="of each of two nodes")
    parser.add_argument("--dram-mib", type=int, default=512, help="of each of two nodes")
    parser.add_argument("--model", default="llama-1024x16", help="of setup.sh, or a folder")
    parser.add_argument("--engine", type=json.loads, default={}, help="more arguments of vllm.LLM")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="memkv-demo-") as folder:
        figures = story(Path(folder), options)
    if options.json:
        options.json.write_text(json.dumps(asdict(figures), indent=1))
    return 0 if report(figures, options.tokens) else 1


def say(text: str) -> None:
    print(text, flush=True)


def story(folder: Path, options: argparse.Namespace) -> Figures:
    plan = PoolPlan(folder / "pool", 2, options.flash_gib * GIB, options.dram_mib * MIB)
    figures = Figures()
    say("starting a pool of two nodes, and two vLLM processes beside it (a minute)")
    with LocalPool(plan) as pool:
        engines = [start(folder, name, pool.endpoint, options) for name in ("first", "second")]
        try:
            for engine in engines:
                engine.wait_ready()
            rounds(*engines, figures, options)
            decoding(*engines, figures, options)
            killed(*engines, pool, figures, options)
        finally:
            for engine in engines:
                engine.close()
    return figures


def start(folder: Path, name: str, endpoint: str, options: argparse.Namespace) -> VllmProcess:
    return VllmProcess(
        Path(os.environ["MEMKV_VLLM_PYTHON"]), Path(__file__).with_name("engine.py"),
        Path(os.environ["MEMKV_VLLM_MODELS"]) / options.model, folder / f"{name}.log",
        {"endpoint": endpoint, **DEADLINES}, block_size=options.block_tokens,
        max_model_len=max(options.tokens, DECODE_PROMPT) + 2 * options.block_tokens,
        **options.engine,
    )


def prompt(seed: int, tokens: int) -> list[int]:
    return random.Random(seed).choices(range(256), k=tokens)


def rounds(
    first: VllmProcess, second: VllmProcess, figures: Figures, options: argparse.Namespace
) -> None:
    # The first call of an engine makes threads and buffers; it is no measurement.
    for engine in (first, second):
        engine.generate(prompt(0, 2 * options.block_tokens))
    for number in range(1, options.rounds + 1):
        tokens = prompt(number, options.tokens)
        computed = first.generate(tokens)
        own = first.generate(tokens)
        loaded = second.generate(tokens)
        figures.computed.append(computed.times[0][0])
        figures.own_cache.append(own.times[0][0])
        figures.loaded.append(loaded.times[0][0])
        figures.own_cache.append(second.generate(tokens).times[0][0])
        figures.tokens_equal &= (loaded.tokens, loaded.logprobs) == (own.tokens, own.logprobs)
        figures.computed_equal &= computed.tokens == loaded.tokens
        figures.tokens_equal &= loaded.cached[0] >= options.tokens - options.block_tokens
        figures.loaded_bytes = bytes_loaded(loaded.report[0])
        say(f"prompt {number}: computed {figures.computed[-1]:.2f} s, from MemKV "
            f"{figures.loaded[-1]:.2f} s, from the own cache {own.times[0][0]:.2f} s")


def bytes_loaded(report: dict[str, dict[str, int]] | None) -> int:
    return 0 if report is None else report["memkv"].get("loaded_bytes", 0)


def decoding(
    engine: VllmProcess, other: VllmProcess, figures: Figures, options: argparse.Namespace
) -> None:
    """Decode behind the same prompts with their blocks stored meanwhile and not stored, in turn. A
    machine that others share is faster and slower for seconds at a time: each is compared with the
    mean of the ones before and after it. The prompts are in the engine's own cache already."""
    prompts = [prompt(1000 + number, DECODE_PROMPT) for number in range(options.pairs)]
    for tokens in prompts:
        engine.generate(tokens, max_tokens=1, memkv={"store": False})
    before_s = decode(engine, prompts[0], stores=False).decode_s
    for tokens in prompts:
        stored = decode(engine, tokens, stores=True)
        after_s = decode(engine, tokens, stores=False).decode_s
        figures.slowdowns.append(2 * stored.decode_s / (before_s + after_s) - 1)
        figures.client_shares.append(stored.client_seconds / stored.cpu_seconds)
        before_s = after_s
    for tokens in prompts:
        loaded = other.generate(tokens, max_tokens=1)
        figures.all_stored &= loaded.cached[0] == DECODE_PROMPT - 1
        figures.load_shares.append(loaded.client_seconds / loaded.cpu_seconds)
    say(f"decoded {DECODED} tokens {2 * options.pairs + 1} times, with and without stores in turn")


def decode(engine: VllmProcess, tokens: list[int], *, stores: bool) -> Generated:
    return engine.generate(tokens, max_tokens=DECODED, memkv={"store": stores})


def killed(
    first: VllmProcess, second: VllmProcess, pool: LocalPool, figures: Figures,
    options: argparse.Namespace,
) -> None:
    tokens = prompt(5000, options.tokens)
    computed, own = first.generate(tokens), first.generate(tokens)
    second.begin(tokens)
    time.sleep(0.05)
    for node in pool.nodes:
        pool.kill(node)
    answers = [second.end()]
    fresh = prompt(5001, 4 * options.block_tokens)
    answers.append(second.generate(fresh))
    anew = first.generate(fresh)
    figures.answered_after_kill = (
        any(is_same(answers[0], other) for other in (computed, own))
        and answers[1].tokens == anew.tokens
    )
    figures.late_s = [
        late_s(answers[0], options.tokens, computed, own),
        late_s(answers[1], len(fresh), anew, own),
    ]
    say(f"killed the pool during a load: {answers[0].cached[0]} of {options.tokens} tokens had "
        f"come; answered after {answers[0].first_s:.2f} s (computed: {computed.first_s:.2f} s)")


def late_s(answer: Generated, tokens: int, computed: Generated, own: Generated) -> float:
    """Return how much later an answer came than by computing what had not come: of a prompt's end
    a token costs up to twice as much as in the mean, for it attends to more."""
    share = min(1.0, 2 * (tokens - answer.cached[0]) / tokens)
    return answer.first_s - own.first_s - COMPUTED_NOISE * share * computed.first_s


def is_same(answer: Generated, other: Generated) -> bool:
    """An engine that computes less of a prompt multiplies other shapes and rounds otherwise, so
    tokens are equal where as much came from a cache; else the first one is as probable."""
    if answer.cached == other.cached:
        return answer.tokens == other.tokens and answer.logprobs == other.logprobs
    first, second = answer.logprobs[0][0], other.logprobs[0][0]
    return answer.tokens[0][0] == other.tokens[0][0] and abs(first - second) < ROUNDING_LOGPROB


def report(figures: Figures, tokens: int) -> bool:
    computed, loaded, own = (
        statistics.median(found)
        for found in (figures.computed, figures.loaded, figures.own_cache)
    )
    slower = upper_bound(figures.slowdowns)
    share = statistics.median(figures.client_shares)
    latest_s = max(figures.late_s)
    say(f"\ntime to first token of a prompt of {tokens} tokens, median")
    say(f"  computed                     {computed:8.3f} s")
    say(f"  from MemKV, second process   {loaded:8.3f} s   {computed / loaded:.1f} times sooner")
    say(f"  from vLLM's own prefix cache {own:8.3f} s   {loaded / own:.2f} of it")
    say(f"  moved {figures.loaded_bytes / 1e6:.0f} MB\n")
    checks = [
        (f"at least {TOLD_BETTER_MIN:.0f} times sooner than computed",
         computed / loaded >= TOLD_BETTER_MIN, f"{computed / loaded:.1f}"),
        (f"at most {OF_OWN_CACHE_MAX} of the own prefix cache",
         loaded / own <= OF_OWN_CACHE_MAX, f"{loaded / own:.2f}"),
        ("tokens and their probabilities are equal to the own cache's", figures.tokens_equal,
         "and to computed ones" if figures.computed_equal else "not to computed ones"),
        (f"stores slow decoding by less than {SLOWER_MAX:.0%} (upper bound, 95%)",
         slower < SLOWER_MAX and figures.all_stored,
         f"{slower:.1%}, median {statistics.median(figures.slowdowns):.1%}"),
        (f"the client takes less than {CLIENT_SHARE_MAX:.0%} of the engine's CPU meanwhile",
         share < CLIENT_SHARE_MAX, f"{share:.2%}"),
        ("with the pool killed every request is answered, and rightly",
         figures.answered_after_kill, ""),
        (f"and no later than by computing what is missing, and {LOAD_DEADLINE_MS / 1000:.0f} s",
         latest_s < LOAD_DEADLINE_MS / 1000, f"{latest_s:+.1f} s"),
    ]
    for text, holds, found in checks:
        say(f"  {'ok  ' if holds else 'FAIL'} {text}{': ' if found else ''}{found}")
    return all(holds for _, holds, _ in checks)


def upper_bound(values: list[float]) -> float:
    """Of the mean, at 95%, one side."""
    if len(values) < 2:
        return math.inf
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values) + T_95.get(len(values), 1.7) * spread


if __name__ == "__main__":
    sys.exit(main())
