"""SQL. Every statement that changes the status of a job is in this package."""
