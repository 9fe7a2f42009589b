"""A pool, and vLLM processes beside it. Run by `make test-engines`."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from memkv.limits import MIB
from memkv.localpool.pool import LocalPool, PoolPlan
from memkv.testing.proxied_pool import ProxiedPool, StartEngine
from memkv.testing.proxy import FaultProxy
from memkv.testing.vllm_process import VllmProcess

PROXY_HOST = "127.0.0.2"  # what nodes advertise; they listen on 127.0.0.1
SCRIPT = Path(__file__).parents[3] / "deploy/dev/vllm/engine.py"
SETUP = SCRIPT.with_name("setup.sh")
BLOCK_TOKENS = 32
CONTEXT_TOKENS = 1024


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxiedPool]:
    if find_spec("vllm") is None:
        pytest.skip("this interpreter has no vLLM; `make test-engines` takes one that has")
    pool = LocalPool(PoolPlan(
        tmp_path_factory.mktemp("pool"), 2, 512 * MIB, 128 * MIB,
        node_arguments=("--advertise", PROXY_HOST),
    ))
    proxies = [
        FaultProxy(("127.0.0.1", node.data_port), at=(PROXY_HOST, node.data_port))
        for node in pool.nodes
    ]
    with pool:
        yield ProxiedPool(pool, proxies)
    for proxy in proxies:
        proxy.close()


@pytest.fixture(scope="session")
def model() -> Path:
    models = subprocess.run([SETUP, "models"], check=True, capture_output=True, text=True).stdout
    return Path(models.strip()) / "llama-256x4"


@pytest.fixture(scope="module")
def launch(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartEngine]:
    """Start engines, of whatever connector, that end with their tests."""
    logs = tmp_path_factory.mktemp("engines")
    engines: list[VllmProcess] = []

    def launch(
        name: str, connector: dict[str, object] | None, of: Path = model, **arguments: object
    ) -> VllmProcess:
        engine = VllmProcess(
            Path(sys.executable), SCRIPT, of, logs / f"{name}.log", connector, **arguments
        )
        engines.append(engine)
        return engine

    yield launch
    statuses = [engine.close() for engine in engines]
    assert statuses == [0] * len(engines)


@pytest.fixture(scope="module")
def start(proxied: ProxiedPool, model: Path, launch: StartEngine) -> StartEngine:
    """Start engines beside the pool that lies."""

    def start(
        name: str, of: Path = model, connector: dict[str, object] | None = None,
        **arguments: object,
    ) -> VllmProcess:
        return launch(
            name, {"endpoint": proxied.pool.endpoint} | (connector or {}), of,
            **({"block_size": BLOCK_TOKENS, "max_model_len": CONTEXT_TOKENS} | arguments),
        )

    return start


@pytest.fixture(scope="module")
def pair(start: StartEngine) -> tuple[VllmProcess, VllmProcess]:
    """Two engines alike, but for the second one's memory: it holds few requests at once."""
    pair = start("first"), start("second", num_gpu_blocks_override=48)
    for engine in pair:
        engine.wait_ready()
    return pair


@pytest.fixture(scope="module")
def prompt() -> Callable[[int, int], list[int]]:
    """Make a prompt of so many tokens, another one for each seed."""
    return lambda seed, tokens: random.Random(seed).choices(range(256), k=tokens)
