"""The Kubernetes operator of MemKV."""
