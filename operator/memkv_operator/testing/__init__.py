"""Doubles and readers for tests of the operator and its chart."""
