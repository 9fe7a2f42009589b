"""The store: blocks in a log of segments on one drive, with a DRAM tier in front.

Start at `api.py`. The parts under `core.py` are pure: they emit I/O requests and take results;
threads live in `engine.py` and `reader.py` only.
"""
