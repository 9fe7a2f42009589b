"""The RDMA transport: the node moves payload into and out of the client's registered memory.

`verbs.py` says what is needed of RDMA devices, `driver.py` gives it by pyverbs (only the
files driver_*.py import that), and `memkv.testing.fake_verbs` without any device. See docs/rdma.md.
"""
