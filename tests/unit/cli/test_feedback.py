"""`headrace feedback`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.command_line import run
from tests.support.scripted_api import ScriptedApi, reply

GIVEN: dict[str, Any] = {
    "id": "feedback_3", "object": "feedback", "job_id": "job_1", "conversation": None, "metric": "rating",
    "value": "down", "comment": None, "tags": [], "user": None, "source": "key", "model": "small",
    "requested_model": "small", "created_at": "2026-11-30T12:00:00Z", "updated_at": "2026-11-30T12:00:00Z",
}  # fmt: skip


def test_an_answer_is_rated(api: ScriptedApi) -> None:
    api.on("POST /v1/jobs/job_1/feedback", reply(GIVEN))
    result = run(api.url, "feedback", "job_1", "down")
    assert (result.exit_code, result.stdout) == (0, "job_1: rated down\n"), result.stderr
    assert api.requests[-1].json == {"rating": "down"}


def test_with_reasons_and_in_the_name_of_somebody(api: ScriptedApi) -> None:
    api.on("POST /v1/jobs/job_1/feedback", reply({**GIVEN, "user": "ann"}))
    options = ("--comment", "It is wrong.", "--tag", "wrong", "--tag", "long", "--user", "ann")
    result = run(api.url, "feedback", "job_1", "down", *options)
    assert (result.exit_code, result.stdout) == (0, "job_1: rated down by ann\n"), result.stderr
    assert api.requests[-1].json == {
        "rating": "down", "comment": "It is wrong.", "tags": ["wrong", "long"], "user": "ann",
    }  # fmt: skip


def test_as_json(api: ScriptedApi) -> None:
    api.on("POST /v1/jobs/job_1/feedback", reply(GIVEN))
    result = run(api.url, "feedback", "job_1", "up", "--json")
    assert result.exit_code == 0
    assert '"feedback_3"' in result.stdout


@pytest.mark.parametrize("arguments", [("job_1",), ("job_1", "sideways"), ()])
def test_other_ratings_are_errors_of_usage(api: ScriptedApi, arguments: tuple[str, ...]) -> None:
    assert run(api.url, "feedback", *arguments).exit_code == 2
    assert not api.requests
