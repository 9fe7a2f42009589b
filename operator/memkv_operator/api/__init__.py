"""What the objects of memkv.io/v1alpha1 are: names, fields, quantities, conditions.

Rules of this package: no I/O, no clock, no randomness; objects come and go as plain JSON values.
"""
