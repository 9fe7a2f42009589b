"""Measurements. Each has its limit, measured in the same run and interleaved with it."""
