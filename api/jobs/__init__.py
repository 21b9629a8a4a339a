"""Native jobs: submit, poll, stream, cancel."""
