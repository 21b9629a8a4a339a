"""The names of statuses and outcomes, which rows, the API and metrics contain."""

from __future__ import annotations

from shared.domain.job import TERMINAL, AttemptOutcome, JobStatus, Usage


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
        "deferred",
        "rerouted",
    }


def test_the_stored_usage_is_that_of_older_versions_unless_an_upstream_reports_more() -> None:
    plain = {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 3}
    assert Usage(0, 0, 3).stored() == plain
    assert Usage(0, 0, 3, 2, 1).stored() == plain | {"reasoning_tokens": 2, "cache_write_tokens": 1}
    for usage in (Usage(1, 2, 3), Usage(1, 2, 3, 4, 5), Usage(1, 2, 3, 4, 5, 2)):
        assert Usage.of(usage.stored()) == usage
    assert Usage.of(Usage(1, 2, 3, 4, 5, 2, "flex").stored()) == Usage(1, 2, 3, 4, 5, 2), "a tier is not stored"
    less = Usage(5, 4, 3, 2, 2, 1, "flex").without({"prompt_tokens": 2, "cached_tokens": 9})
    assert less == Usage(3, 0, 3, 2, 2, 1, "flex")
    assert Usage.of(plain | {"novel": 1}) == Usage(0, 0, 3)
