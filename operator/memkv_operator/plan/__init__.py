"""What to do next, from what is wanted and what is seen. Pure: no I/O, no clock, no randomness.

`plan` answers for the objects of a pool; `shards` drives the publisher that decides on its map.
Both are level-triggered: they look at the present only, so a lost, doubled or late event changes
nothing but the moment.
"""
