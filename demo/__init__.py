"""A demonstration of routes, the response cache and coalescing on this machine: `make demo`."""
