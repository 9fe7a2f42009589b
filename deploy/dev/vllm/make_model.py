"""Makes a random Llama model with a byte-level tokenizer: no download, the same bytes every time.

    python make_model.py DIR [--hidden 1024] [--layers 16] [--kv-heads 8] [--seed 0]

Its answers mean nothing; its KV has the sizes and the arithmetic of a real model's.
"""

import argparse
import math
import os
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT_TOKENS = 8192


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and one for the end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    vocabulary["<end>"] = len(vocabulary)
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")


def model(hidden: int, layers: int, kv_heads: int, vocabulary: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 2,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        max_position_embeddings=CONTEXT_TOKENS,
        bos_token_id=None,
        eos_token_id=vocabulary - 1,
        # Wide enough that every answer depends on the whole prompt: wrong KV shows in the tokens.
        initializer_range=2 / math.sqrt(hidden),
        torch_dtype=torch.bfloat16,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dir", type=Path)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.dir.exists():
        return
    options.dir.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: a half-written model would be taken for a made one.
    with tempfile.TemporaryDirectory(dir=options.dir.parent, prefix=".part.") as part:
        words = tokenizer()
        words.save_pretrained(part)
        model(
            options.hidden, options.layers, options.kv_heads, len(words), options.seed
        ).save_pretrained(part)
        os.chmod(part, 0o755)
        os.rename(part, options.dir)
        os.mkdir(part)  # for the end of the block to remove


if __name__ == "__main__":
    main()
