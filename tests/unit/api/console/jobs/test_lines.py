"""A line of the list of jobs is rendered once for as long as it is the same."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from api.console import templates
from api.console.jobs import lines, view
from api.console.jobs.lines import Lines
from api.console.key_names import KeyNames
from shared.domain.errors import ErrorCode
from shared.domain.job import Failure, JobStatus, JobSummary
from shared.domain.owner import Owner

NOW = datetime(2026, 1, 1, tzinfo=UTC)
JOB = JobSummary(
    id=f"job_{1:032x}", owner=Owner(1, 1), model="<b>", status=JobStatus.QUEUED, priority=3, created_at=NOW
)
ENDED = replace(JOB, id=f"job_{2:032x}", status=JobStatus.COMPLETED, finished_at=NOW + timedelta(seconds=150))


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the jobs whose line was rendered."""
    ids: list[str] = []
    original = templates.render

    def render(template: str, values: Any) -> Any:
        ids.append(values["row"].id)
        return original(template, values)

    monkeypatch.setattr(lines, "render", render)
    return ids


def rows(*jobs: JobSummary, after_s: float = 0) -> list[view.Row]:
    return view.rows(jobs, {1: KeyNames("key", "project")}, (), NOW + timedelta(seconds=after_s))


def html(known: Lines, *jobs: JobSummary, after_s: float = 0, can_select: bool = True) -> str:
    return str(known.render(rows(*jobs, after_s=after_s), all_projects=True, can_select=can_select))


def test_a_line_is_rendered_again_only_if_it_has_changed(rendered: list[str]) -> None:
    known = Lines()
    first = html(known, JOB, ENDED, after_s=1)
    assert "<b>" not in first
    assert first.count('<tr role="row"') == 2
    assert first.count("<td") == first.count('<td role="cell"')
    assert first.index(JOB.id) < first.index(ENDED.id)
    assert html(known, JOB, ENDED, after_s=1) == first
    assert rendered == [JOB.id, ENDED.id]
    later = html(known, JOB, ENDED, after_s=5)
    assert rendered == [JOB.id, ENDED.id, JOB.id], "its time so far has changed"
    assert later != first
    assert "checkbox" not in html(known, ENDED, can_select=False)
    assert "failed" in html(known, replace(ENDED, deaths=1, status=JobStatus.FAILED)).lower()


def test_the_lines_that_were_not_shown_for_the_longest_time_are_forgotten(
    rendered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MOST", 2)
    known, third = Lines(), replace(ENDED, id=f"job_{3:032x}")
    for jobs in ([JOB, ENDED], [JOB], [third], [JOB, third]):
        html(known, *jobs)
    assert rendered == [JOB.id, ENDED.id, third.id]
    html(known, ENDED)
    assert rendered[3:] == [ENDED.id]


@pytest.mark.parametrize(
    ("after_s", "shown"), [(0, "0 ms"), (59.6, "60 s"), (119, "1 min 59 s"), (130, "2 min"), (7000, "1 h 56 min")]
)
def test_the_time_so_far_has_no_seconds_after_two_minutes(after_s: float, shown: str) -> None:
    """So that a live list of long jobs stays the same for a while."""
    (row,) = rows(JOB, after_s=after_s)
    assert row.time == shown
    (ended,) = rows(ENDED)
    assert ended.time == "2 min 30 s"


@pytest.mark.parametrize(
    ("status", "code", "notes"),
    [
        (JobStatus.CANCELLED, ErrorCode.CANCELLED, []),
        (JobStatus.CANCELLED, ErrorCode.DEADLINE_EXCEEDED, [("deadline_exceeded", "plain")]),
        (JobStatus.FAILED, ErrorCode.WORKER_LOST, [("worker_lost", "bad")]),
    ],
)
def test_an_error_is_noted_unless_it_is_what_the_status_says(
    status: JobStatus, code: ErrorCode, notes: list[tuple[str, str]]
) -> None:
    [row] = rows(replace(ENDED, status=status, error=Failure(code, "Why.")))
    assert row.notes == notes
    assert row.title == "Why."
