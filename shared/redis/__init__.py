"""Redis: the event logs of jobs, and the queue."""
