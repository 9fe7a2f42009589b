"""Slots that move: what a worker does when the shard map gives it slots or takes them away.

`plan` decides by tables, `memory` is what must outlive the process; both are pure. `keeper` carries
plans out, `puller` copies blocks from previous owners over `peer`. The rules that keep a deleted
block deleted are in `plan` and in `pull_slot`.
"""
