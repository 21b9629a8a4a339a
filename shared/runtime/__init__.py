"""Process plumbing: asyncio helpers, the supervisor, outages, garbage collection."""
