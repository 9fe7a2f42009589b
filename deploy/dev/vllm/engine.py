"""A vLLM process that is told what to do by lines of JSON, for tests and the demo.

    engine.py MODEL '{"kv_transfer_config": {...}, "block_size": 128}'

The second argument are arguments of vllm.LLM. Each line of standard input is a request:
{"prompts": [[token, ...], ...], "max_tokens": 8, "salt": "..."}; each answer one line of its
output: {"seconds", "tokens", "cached", "report", "cpu_seconds"}; the first says {"ready": true}.
What vLLM logs goes to standard error. `reset` empties the engine's own prefix cache.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

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
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        print(json.dumps(answer(llm, json.loads(line))), file=answers)


def answer(llm: Any, request: dict[str, Any]) -> dict[str, Any]:
    if request.get("reset"):
        return {"reset": bool(llm.reset_prefix_cache())}
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": tokens} for tokens in request["prompts"]]
    for prompt in prompts:
        if request.get("salt"):
            prompt["cache_salt"] = request["salt"]
    sampling = SamplingParams(
        max_tokens=request["max_tokens"], temperature=0, ignore_eos=True
    )
    cpu = time.process_time()
    begin = time.perf_counter()
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    seconds = time.perf_counter() - begin
    return {
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu,
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        "cached": [output.num_cached_tokens for output in outputs],
        "report": [output.kv_transfer_params for output in outputs],
    }


if __name__ == "__main__":
    main()
