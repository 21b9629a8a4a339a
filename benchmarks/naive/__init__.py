"""What is written first: a Celery task that has the model answer one request, and a route that waits for it."""
