"""What the API and the workers have in common: the job, its row, its queue and its stream."""
