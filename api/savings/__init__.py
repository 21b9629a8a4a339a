"""What routes, the response cache, coalescing and prompt caches have saved."""
