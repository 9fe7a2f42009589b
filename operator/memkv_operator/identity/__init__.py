"""Who is who in a pool: its authority, the certificates it signs, and the keys of tickets.

Rules of this package: no I/O and no clock; keys are made here and kept by whoever asked.
"""
