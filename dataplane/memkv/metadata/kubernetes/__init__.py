"""The API server of Kubernetes, as the metadata service and the operator use it.

The package `kubernetes` is imported when a connection is made, so that nothing else needs it.
"""
