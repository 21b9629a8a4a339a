"""Event streams of jobs for readers of this API process."""
