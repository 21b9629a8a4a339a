"""SQL. All statements that change the status of a job are in this package."""
