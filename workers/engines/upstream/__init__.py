"""What engines share that relay jobs to another server."""
