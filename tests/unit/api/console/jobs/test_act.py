"""Acts on all jobs of a list: what their pages pass on, and who may continue them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from api.console.jobs.act import MAX_JOBS, Act, absolute
from api.console.jobs.conditions import Conditions
from api.console.viewer import Viewer
from api.jobs.actions import Action, ActionPage, ActionResult, JobCount
from api.jobs.search_store import JobPage
from api.keys.principal import Principal, Scope
from shared.domain.errors import Forbidden
from shared.domain.job import JobStatus

VIEWER = Viewer(Principal(1, 1, frozenset({Scope.INFERENCE})), "ann", "search", "session", "csrf")
NOW = datetime(2026, 11, 30, 12, 0, 0, 7, tzinfo=UTC)
CONDITIONS = Conditions(statuses=(JobStatus.QUEUED,), user="Ann B", metadata=("team=a&b", "x=y"))


def act(action: Action = Action.CANCEL, count: int = 3) -> Act:
    made = Act.new(action, CONDITIONS, JobCount(count, True, NOW))
    assert made is not None
    return made


def page(*results: ActionResult, cursor: str | None = None) -> ActionPage:
    return ActionPage(JobPage((), cursor), results)


def test_an_address_has_the_whole_act() -> None:
    moved = act().with_page(page(ActionResult("job_1", JobStatus.CANCELLED), cursor="job_1"))
    assert Act.read(VIEWER, moved.parameters(VIEWER)) == moved
    assert moved.query(VIEWER).created_before == NOW


@pytest.mark.parametrize(
    "changes", [{"action": "replay"}, {"user": "Bob"}, {"name": "x"}, {"seal": ""}, {"until": "x"}, {"count": "x"}]
)
def test_an_address_that_was_made_up_is_refused(changes: dict[str, str]) -> None:
    pairs = [(name, changes.get(name, value)) for name, value in act().parameters(VIEWER)]
    with pytest.raises(Forbidden):
        Act.read(VIEWER, pairs)


def test_an_address_of_another_session_is_refused() -> None:
    other = Viewer(VIEWER.principal, "ann", "search", "another session", "csrf")
    with pytest.raises(Forbidden):
        Act.read(other, act().parameters(VIEWER))


def test_the_results_are_counted() -> None:
    moved = act().with_page(
        page(
            ActionResult("job_3", JobStatus.CANCELLED),
            ActionResult("job_2", JobStatus.COMPLETED),
            ActionResult("job_1", JobStatus.QUEUED, error="It failed."),
        )
    )
    assert (moved.done, moved.ended, moved.failed, moved.last_error) == (1, 1, 1, "It failed.")
    assert moved.is_over
    replayed = act(Action.REPLAY).with_page(page(ActionResult("job_1", JobStatus.FAILED, "job_2"), cursor="job_1"))
    assert (replayed.done, replayed.is_over, replayed.after) == (1, False, "job_1")


def test_an_act_ends_at_the_most_jobs() -> None:
    results = [ActionResult(f"job_{number}", JobStatus.CANCELLED) for number in range(MAX_JOBS)]
    assert act(count=MAX_JOBS).with_page(page(*results, cursor="job_1")).is_over


def test_a_range_becomes_a_time() -> None:
    found = absolute(Conditions(range="1h"), NOW)
    assert (found.range, found.start) == (None, (NOW - timedelta(hours=1)).replace(microsecond=0))
    later = NOW - timedelta(minutes=1)
    assert absolute(Conditions(range="1h", start=later), NOW).start == later


def test_without_jobs_there_is_no_act() -> None:
    assert Act.new(Action.CANCEL, CONDITIONS, JobCount(0, True, None)) is None
