"""Protocol definitions of MemKV: .proto sources and their checked-in stubs."""
