"""The metadata service: who publishes shard maps, who serves them, who watches them."""
