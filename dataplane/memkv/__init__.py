"""MemKV: distributed flash memory for the KV cache of LLM inference."""
