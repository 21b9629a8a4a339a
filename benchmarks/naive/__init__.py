"""A naive baseline: a Celery task that runs one request on the model, and a route that waits for its result."""
