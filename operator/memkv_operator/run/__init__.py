"""The running operator: watches, a queue of pools, reconciling, publishing, leading."""
