"""The list of jobs: search, select, cancel, replay, export."""
