"""The `local` transport: blocks move through memory that a client on the same machine shares.

`sockets` is the Unix socket both sides meet at, `regions` what a node holds of a client's memory,
`files` what file descriptors it takes, `service` the operations. Frames, tickets, credits and
ownership are those of `memkv.tcp`; only the payload goes another way.
"""
