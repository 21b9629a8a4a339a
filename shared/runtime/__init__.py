"""Process plumbing: asyncio helpers, outages, garbage collection."""
