"""`python -m api.failed`: the operator's command for failed jobs; see `api.jobs.dead_letters`."""
