"""From a pool to the manifests of its children. Pure: no I/O, no clock, no randomness.

What stands here is what `kubectl get -o yaml` shows; golden files in tests hold it.
"""
