"""The names of statuses and outcomes, which rows, the API and metrics contain."""

from __future__ import annotations

from shared.domain.job import TERMINAL, AttemptOutcome, JobStatus


def test_completed_and_incomplete_jobs_have_succeeded() -> None:
    assert {status.value for status in JobStatus if status.succeeded} == {"completed", "incomplete"}
    assert all(status in TERMINAL for status in JobStatus if status.succeeded)


def test_the_stored_names_of_outcomes_do_not_change() -> None:
    assert {outcome.value for outcome in AttemptOutcome} == {
        "completed",
        "incomplete",
        "failed",
        "cancelled",
        "handed_back",
        "set_aside",
        "engine_lost",
        "worker_lost",
    }
