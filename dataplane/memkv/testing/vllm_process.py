"""A vLLM process of deploy/dev/vllm/engine.py: told what to do by lines of JSON."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

START_TIMEOUT_S = 1500.0  # imports of vLLM alone take minutes on a busy machine
ANSWER_TIMEOUT_S = 1500.0
END_TIMEOUT_S = 300.0

PATIENT: dict[str, object] = {
    "report": True, "lookup_deadline_ms": 10_000, "deadline_ms": 20_000, "load_deadline_ms": 60_000,
}
"""Slowness of a machine that many tests share is no miss."""


@dataclass(frozen=True)
class Generated:
    """What one call brought, a list entry for each prompt."""

    seconds: float
    cpu_seconds: float
    tokens: list[list[int]]
    logprobs: list[list[float]]
    cached: list[int]
    report: list[dict[str, dict[str, int]] | None]
    times: list[list[float]]
    """Seconds from the begin to each token."""
    preemptions: int
    client_seconds: float
    """Of `cpu_seconds`: of the client, in its own threads and in the engine's."""

    @property
    def first_s(self) -> float:
        """Until the first token, of one prompt."""
        (times,) = self.times
        return times[0]

    @property
    def decode_s(self) -> float:
        """From the first token to the last one, of one prompt."""
        (times,) = self.times
        return times[-1] - times[0]

    def reasons(self, index: int = 0) -> dict[str, int]:
        """What the pool had of a prompt's blocks, by reason."""
        report = self.report[index]
        return {} if report is None else report["memkv"]


@dataclass(frozen=True)
class LoraAdapter:
    """An adapter as a user of the engine names it."""

    name: str
    path: Path


class VllmProcess:
    """One engine. `wait_ready` before the first call; several may start side by side."""

    def __init__(
        self, python: Path, script: Path, model: Path, log: Path,
        connector: dict[str, object] | None, **arguments: object,
    ) -> None:
        """`connector`: extra configuration of MemKVConnector, None for an engine without it.
        `arguments`: of vllm.LLM."""
        if connector is not None:
            arguments["kv_transfer_config"] = {
                "kv_connector": "MemKVConnector",
                "kv_connector_module_path": "memkv.integrations.vllm",
                "kv_role": "kv_both",
                "kv_load_failure_policy": "recompute",
                "kv_connector_extra_config": PATIENT | connector,
            }
        self.log = log
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [python, script, model, json.dumps(arguments)], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=output, text=True,
                env=os.environ | {"PYTHONHASHSEED": "0"},
            )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> None:
        assert self._line(START_TIMEOUT_S) == {"ready": True}

    def generate(
        self, *prompts: list[int], max_tokens: int = 8, salt: str | None = None,
        memkv: dict[str, bool] | None = None, lora: LoraAdapter | None = None,
    ) -> Generated:
        """Have the engine answer prompts, all at once."""
        self.begin(*prompts, max_tokens=max_tokens, salt=salt, memkv=memkv, lora=lora)
        return self.end()

    def begin(
        self, *prompts: list[int], max_tokens: int = 8, salt: str | None = None,
        memkv: dict[str, bool] | None = None, lora: LoraAdapter | None = None,
    ) -> None:
        """Send prompts; `end` waits for the answer. `memkv`: of the request, such as
        {"store": False}."""
        self._send({
            "prompts": prompts, "max_tokens": max_tokens, "salt": salt, "memkv": memkv,
            "lora": None if lora is None else {"name": lora.name, "path": str(lora.path)},
        })

    def compute(self, *prompts: list[int], **named: Any) -> Generated:
        """Have the engine answer without the pool and without its own prefix cache. `named`: as
        `generate` has them."""
        assert self.forget(), "blocks of the engine are in use"
        answer = self.generate(*prompts, memkv={"load": False, "store": False}, **named)
        assert self.forget(), "blocks of the engine are in use"
        return answer

    def end(self) -> Generated:
        answer = self._line(ANSWER_TIMEOUT_S)
        return Generated(**answer)  # type: ignore[arg-type]  # as engine.py writes it

    def forget(self) -> bool:
        """Empty the engine's own prefix cache; False when blocks of it are in use."""
        self._send({"reset": True})
        return bool(self._line(ANSWER_TIMEOUT_S)["reset"])

    def close(self) -> int:
        """End it as its user would; return its exit status."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            return self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- inside -------------------------------------------------------------------------------
    def _send(self, request: dict[str, object]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def _line(self, timeout_s: float) -> dict[str, object]:
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            line = ""
        if not line:
            self._lines.put("")  # nothing comes after its end, however often one asks
            tail = self.log.read_text(errors="replace")[-4000:]
            raise AssertionError(f"no answer of the engine; its log ends with:\n{tail}")
        found = json.loads(line)
        assert isinstance(found, dict)
        return found

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")
