"""The client: one core of pure operations, three faces (sync, asyncio, eventfd) that drive it."""
