"""The words that rows, the API and metrics use for jobs and attempts."""

from __future__ import annotations

from shared.domain.job import TERMINAL, AttemptOutcome, JobStatus


def test_a_job_succeeds_with_a_complete_or_a_cut_answer() -> None:
    assert {status.value for status in JobStatus if status.succeeded} == {"completed", "incomplete"}
    assert all(status in TERMINAL for status in JobStatus if status.succeeded)


def test_outcomes_are_stored_under_these_names() -> None:
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
