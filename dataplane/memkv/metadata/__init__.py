"""The metadata service: who publishes shard maps, who serves them, who watches them."""

import os

# Before anything imports grpc: its C core would write a line for every peer that goes away.
# What the user set stays.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
