"""A node: the supervisor of a pod, its workers, and the server of each worker's data port."""
