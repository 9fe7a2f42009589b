"""Fakes and oracles, shipped with the product so that its users can test against them too.

Production code never imports this package (import-linter holds that).
"""
