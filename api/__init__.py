"""The HTTP API: accepts jobs, commits them, and streams the workers' output."""
