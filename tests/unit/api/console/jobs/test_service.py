"""Changes of selected jobs, and the cells of exports."""

from __future__ import annotations

from typing import Any, cast

import pytest

from api.console.jobs.export import _cell
from api.console.jobs.service import ConsoleJobs
from api.console.viewer import Viewer
from api.jobs.actions import Action
from api.keys.principal import Principal, Scope
from shared.domain.ids import new_id
from shared.domain.job import JOB_ID_PREFIX

VIEWER = Viewer(Principal(1, 1, frozenset({Scope.INFERENCE})), "ann", "search", "session", "csrf")


class Store:
    """A store whose database is unavailable for some jobs."""

    def __init__(self, away: str, error: Exception) -> None:
        self._away = away
        self._error = error

    async def summary(self, job_id: str, _: int | None) -> None:
        if job_id == self._away:
            raise self._error


def jobs(store: Store) -> ConsoleJobs:
    rest: dict[str, Any] = dict.fromkeys(("search", "jobs", "logs", "names", "replays", "ledger"))
    return ConsoleJobs(store=cast(Any, store), **rest)


async def test_an_outage_is_the_result_of_the_jobs_that_it_concerns() -> None:
    first, second = new_id(JOB_ID_PREFIX), new_id(JOB_ID_PREFIX)
    results = await jobs(Store(first, OSError("refused"))).apply(VIEWER, Action.CANCEL, [first, second])
    assert [result.job_id for result in results] == [first, second]
    assert "was unavailable" in results[0].text
    assert "There is no job" in results[1].text


async def test_a_fault_is_not_hidden() -> None:
    job = new_id(JOB_ID_PREFIX)
    with pytest.raises(ZeroDivisionError):
        await jobs(Store(job, ZeroDivisionError())).apply(VIEWER, Action.CANCEL, [job])


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1"])
def test_a_cell_is_no_formula(text: str) -> None:
    assert _cell(text) == f"'{text}"
