"""Workers, and the queues of models."""
