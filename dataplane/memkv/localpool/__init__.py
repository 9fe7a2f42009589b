"""A whole pool on one machine as real processes, for `memkv up`, demo, benchmarks and tests."""
