"""Domain types and rules: jobs, requests, events, ids, errors. Nothing here performs I/O."""
