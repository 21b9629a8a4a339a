"""`/v1/requests`: reads the request log, and exports it."""
