"""What the operator does at the API server: typed verbs, and the Lease by which one leads."""
