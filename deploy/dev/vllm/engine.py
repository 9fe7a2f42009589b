"""A vLLM process that is told what to do by lines of JSON, for tests and the demo.

    engine.py MODEL '{"kv_transfer_config": {...}, "block_size": 128}'

The second argument are arguments of vllm.LLM. Each line of standard input is a request, each answer
one line of standard output; the first one says {"ready": true}.

    {"prompts": [[token, ...], ...], "max_tokens": 8, "salt": null, "memkv": {"store": false},
     "lora": {"name": "sql", "path": "/adapters/sql"}}
    {"seconds", "cpu_seconds", "client_seconds", "tokens", "logprobs", "cached", "report", "times",
     "preemptions"}
    {"reset": true}     empties the engine's own prefix cache

`times` are seconds from the begin to each token of a prompt. What vLLM logs goes to standard error.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

REQUESTS = itertools.count()
PREEMPTED: list[str] = []
BUSY_SECONDS: list[float] = []
FORGET_S_MAX = 60.0
ADAPTERS: dict[tuple[str, str], int] = {}

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
# One process: its CPU time is the engine's, and its end is the engine's end.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


def main() -> None:
    # Libraries print to standard output; answers have it for themselves.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    from vllm import LLM

    arguments: dict[str, Any] = {
        "enforce_eager": True, "disable_log_stats": True, "max_num_batched_tokens": 4096,
    }
    llm = LLM(model=sys.argv[1], **(arguments | json.loads(sys.argv[2])))
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    count_preemptions(scheduler)
    if scheduler.connector is not None:
        count_busy_seconds(scheduler.connector)
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        print(json.dumps(answer(llm, json.loads(line))), file=answers)


def answer(llm: Any, request: dict[str, Any]) -> dict[str, Any]:
    if request.get("reset"):
        return {"reset": forget(llm)}
    from vllm import SamplingParams

    engine, lora = llm.llm_engine, lora_of(request.get("lora"))
    sampling = SamplingParams(
        max_tokens=request["max_tokens"], temperature=0, ignore_eos=True, logprobs=0,
        extra_args={"kv_transfer_params": {"memkv": request.get("memkv") or {}}},
    )
    cpu, client, begin = time.process_time(), client_seconds(), time.perf_counter()
    PREEMPTED.clear()
    numbers = {}
    for number, tokens in enumerate(request["prompts"]):
        prompt = {"prompt_token_ids": tokens}
        if request.get("salt"):
            prompt["cache_salt"] = request["salt"]
        numbers[str(next(REQUESTS))] = number
        engine.add_request(list(numbers)[-1], prompt, sampling, lora_request=lora)
    outputs: list[Any] = [None] * len(numbers)
    times: list[list[float]] = [[] for _ in numbers]
    while engine.has_unfinished_requests():
        for output in engine.step():
            number = numbers[output.request_id]
            outputs[number] = output
            times[number] += [time.perf_counter() - begin] * (
                len(output.outputs[0].token_ids) - len(times[number])
            )
    return {
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - cpu,
        "client_seconds": client_seconds() - client,
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        "logprobs": [
            [chosen[token].logprob for token, chosen in zip(
                output.outputs[0].token_ids, output.outputs[0].logprobs, strict=True
            )]
            for output in outputs
        ],
        "cached": [output.num_cached_tokens for output in outputs],
        "report": [output.kv_transfer_params for output in outputs],
        "times": times,
        "preemptions": len(PREEMPTED),
    }


def forget(llm: Any) -> bool:
    """Empty the prefix cache; blocks that are being stored are in use until a step lets go of
    them."""
    until = time.monotonic() + FORGET_S_MAX
    while not llm.reset_prefix_cache():
        if time.monotonic() > until:
            return False
        llm.llm_engine.step()
    return True


def lora_of(said: dict[str, str] | None) -> Any:
    """Return vLLM's request for an adapter, with a number for each name and path, as its server
    gives them."""
    if not said:
        return None
    from vllm.lora.request import LoRARequest

    known = (said["name"], said["path"])
    return LoRARequest(known[0], ADAPTERS.setdefault(known, len(ADAPTERS) + 1), known[1])


def count_preemptions(scheduler: Any) -> None:
    preempt = scheduler._preempt_request

    def counted(request: Any, *arguments: Any, **named: Any) -> Any:
        PREEMPTED.append(request.request_id)
        return preempt(request, *arguments, **named)

    scheduler._preempt_request = counted


def count_busy_seconds(connector: Any) -> None:
    take_stats = connector.get_kv_connector_stats

    def counted() -> Any:
        stats = take_stats()
        if stats is not None:  # other connectors count other things
            BUSY_SECONDS.append(stats.data.get("busy_seconds", 0.0))
        return stats

    connector.get_kv_connector_stats = counted


def client_seconds() -> float:
    """CPU time of the client in this process: its native threads, its Python threads, and what the
    engine's threads do in the connector."""
    python = {one.native_id for one in threading.enumerate() if one.name.startswith("memkv")}
    total_ns = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has ended
            is_native = (task / "comm").read_text().startswith("memkv")
            if is_native or int(task.name) in python:
                total_ns += int((task / "schedstat").read_text().split()[0])
    return total_ns / 1e9 + sum(BUSY_SECONDS)


if __name__ == "__main__":
    main()
