"""Runs one attempt of a job: it generates, publishes and ends the job, or returns it to the queue."""
