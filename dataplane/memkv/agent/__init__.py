"""The agent: knows a node's disks and hands approved ones to pods as a kubelet device plugin.

Rules of this package: `disks`, `rules`, `content` and `decisions` do no I/O, so that all that
decides which disk may be touched is tested without one. What writes to a disk opens it exclusively
and first checks that it is still the disk, with the content, that was decided upon.
"""
