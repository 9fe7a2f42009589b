"""The `tcp` transport of a node: payload operations served on one lane at a time.

`lane` says what a lane is to the operations, `get` and `put` serve them, `store_api` is what they
need of a store. Threads, sessions and listening are `memkv.node`'s.
"""
