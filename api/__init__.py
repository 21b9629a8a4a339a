"""The HTTP API: takes jobs, commits them, and streams what the workers make of them."""
