"""`python -m api.failed`: operator command for failed jobs; see `api.jobs.dead_letters`."""
