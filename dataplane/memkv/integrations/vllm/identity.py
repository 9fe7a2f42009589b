"""Namespaces of a vLLM engine: what beside the tokens decides which bytes its blocks have."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memkv.integrations.keys import Adapter, Namespace, Rank
from memkv.integrations.vllm.messages import RankFormat
from memkv.integrations.vllm.settings import Settings

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

logger = logging.getLogger("vllm.memkv")

SAMPLE_BYTES = 4096
SAMPLES_PER_TENSOR = 3
SEED_CHARACTERS_MAX = 32
SALT_BYTES_MAX = 256


class Identity:
    """The part of namespaces that all requests of an engine share."""

    def __init__(self, config: VllmConfig, settings: Settings, block_tokens: int) -> None:
        model = config.model_config
        local = Path(str(model.model))
        self._model = settings.model or (local.name if local.is_dir() else str(model.model))
        revision = settings.revision
        if revision is None:
            # A path says nothing of what lies there; two folders of one name must not share.
            revision = weights_digest(local) if local.is_dir() else commit_of(model)
            if not revision:
                logger.warning(
                    'the revision of %s is not known: say --revision, or "revision" in '
                    "kv_connector_extra_config, if engines of this pool may run several", local,
                )
        self._revision = f"{revision}/{effective_digest(model)}"
        self._algorithm = str(config.cache_config.prefix_caching_hash_algo)
        self._block_tokens = block_tokens

    def namespaces(
        self, formats: Sequence[RankFormat], ranks: Sequence[tuple[Rank, ...]],
        adapter: Adapter | None, salt: str,
    ) -> tuple[Namespace, ...]:
        """Return the namespace of each worker's blocks."""
        return tuple(
            Namespace(
                model=self._model, revision=self._revision, kv_dtype=block_format.kv_dtype,
                layout=block_format.layout, block_tokens=self._block_tokens,
                hashing=hashing(self._algorithm), ranks=rank, adapter=adapter,
                cache_salt=salt_bytes(salt),
            )
            for block_format, rank in zip(formats, ranks, strict=True)
        )


def commit_of(model: ModelConfig) -> str:
    """Return which commit of a hub's repository runs, or what the user calls it; "": unknown."""
    return str(getattr(model.hf_config, "_commit_hash", None) or model.revision or "")


def effective_digest(model: ModelConfig) -> str:
    """Return a digest of what an engine makes of a model: overrides of its configuration, such as
    another scaling of positions, quantization while it loads, and the type that it computes in give
    the same weights other KV."""
    configuration = _without_places(model.hf_config.to_dict())
    made = [configuration, str(model.quantization), str(model.dtype)]
    text = json.dumps(made, sort_keys=True, default=repr)
    text = re.sub(r" at 0x[0-9a-f]+", "", text)  # of objects, another in each process
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _without_places(configuration: Mapping[str, object]) -> dict[str, object]:
    """Leave out what differs for one model from machine to machine, at every depth."""
    return {
        name: _without_places(value) if isinstance(value, Mapping) else value
        for name, value in configuration.items()
        if name not in ("_name_or_path", "transformers_version")
    }


def salt_bytes(salt: str) -> bytes:
    """Return what stands for a salt: its text, or a digest of a long one, behind a byte that no
    text has."""
    text = salt.encode(errors="surrogatepass")  # users may send what is no text
    if len(text) <= SALT_BYTES_MAX:
        return text
    return b"\xff" + hashlib.blake2b(text, digest_size=32).digest()


def hashing(algorithm: str) -> str:
    """Name how block hashes are made. vLLM fixes the seed by itself for cryptographic algorithms,
    PYTHONHASHSEED overrides it, and others get a random one, which must stay secret."""
    from vllm.v1.core.kv_cache_utils import get_none_hash_seed

    seed = str(get_none_hash_seed())
    if len(seed) > SEED_CHARACTERS_MAX:
        seed = hashlib.blake2b(seed.encode(), digest_size=8).hexdigest()
    return f"vllm/{algorithm}/{seed}"


def weights_digest(folder: Path) -> str:
    """Return a digest of a model's folder: its configuration whole, and of the weights names, sizes
    and samples of every tensor. Reading all of them would take minutes for a large model; weights
    that were trained differ everywhere."""
    whole = hashlib.blake2b(digest_size=16, person=b"memkv-weights")
    for path in sorted(folder.iterdir()):
        if path.name == "config.json":
            whole.update(path.read_bytes())
        elif path.suffix in (".safetensors", ".bin", ".pt", ".gguf"):
            whole.update(struct.pack("<Q", path.stat().st_size) + path.name.encode())
            with path.open("rb") as file:
                for offset in _sampled(path):
                    file.seek(offset)
                    whole.update(file.read(SAMPLE_BYTES))
    return whole.hexdigest()


def _sampled(path: Path) -> list[int]:
    """Return offsets of samples: some in each tensor where the file says where tensors lie."""
    size = path.stat().st_size
    spans = [(0, size)] * 16
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(header_bytes))
        begin = 8 + header_bytes
        spans = [
            (begin + tensor["data_offsets"][0], begin + tensor["data_offsets"][1])
            for name, tensor in sorted(header.items()) if name != "__metadata__"
        ]
        return [0, *(
            start + (end - start) * index // SAMPLES_PER_TENSOR
            for start, end in spans for index in range(SAMPLES_PER_TENSOR)
        )]
    return [size * index // len(spans) for index in range(len(spans))]
