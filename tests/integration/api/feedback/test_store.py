"""Feedback in PostgreSQL: one value for each target, metric and author, which may change."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.feedback.service import FeedbackService
from api.feedback.store import FeedbackFilters, FeedbackStore, JobFacts, NewFeedback
from api.feedback.tokens import FeedbackTokens, SecretStore
from api.keys.principal import Principal, Scope
from api.keys.store import ApiKeyStore
from shared.domain.feedback import MAX_BY_TOKEN, MAX_OF_TARGET, FeedbackSource
from shared.domain.owner import Owner
from tests.support.database import make_owner
from tests.support.job_rows import add_job
from tests.support.metrics import api_metrics
from tests.support.usage_entries import entry, write


@pytest.fixture
def feedback(database: AsyncEngine) -> FeedbackStore:
    return FeedbackStore(database)


def about(owner: Owner, job_id: str | None = "job_1", **values: Any) -> NewFeedback:
    """Feedback about a job of a project, or a conversation."""
    job = None if job_id is None else JobFacts(job_id, owner.project_id, "m", "auto", None)
    new = NewFeedback(owner.project_id, job, None, "rating", "", "up", None, (), FeedbackSource.KEY)
    return replace(new, **values)


async def test_feedback_about_a_job_has_its_model_and_route(
    database: AsyncEngine, feedback: FeedbackStore, owner: Owner
) -> None:
    job_id = await add_job(database, owner, "small", ended_s_ago=5, requested_model="auto", end_user="ann")
    job = await feedback.job(job_id)
    assert job == JobFacts(job_id, owner.project_id, "small", "auto", "ann")
    put = await feedback.put(about(owner, None, job=job, author="ann", tags=("a", "b"), comment="c"))
    assert put is not None
    given, is_new = put
    assert is_new
    assert (given.job_id, given.model, given.requested_model, given.author) == (job_id, "small", "auto", "ann")
    assert (given.value, given.tags, given.comment, given.source) == ("up", ("a", "b"), "c", FeedbackSource.KEY)
    assert given.created_at == given.updated_at


async def test_a_deleted_job_is_found_in_the_ledger(
    database: AsyncEngine, feedback: FeedbackStore, owner: Owner
) -> None:
    first = entry(job_id="job_9", attempt=1, final=False, model="lost", project_id=owner.project_id)
    last = entry(job_id="job_9", attempt=2, model="m", requested_model="auto", project_id=owner.project_id)
    await write(database, [first, last])
    assert await feedback.job("job_9") == JobFacts("job_9", owner.project_id, "m", "auto", None)
    assert await feedback.job("job_8") is None


async def test_feedback_changes_and_keeps_its_id(feedback: FeedbackStore, owner: Owner) -> None:
    first = await feedback.put(about(owner, comment="good"))
    again = await feedback.put(about(owner, comment="good"))
    changed = await feedback.put(about(owner, value="down", source=FeedbackSource.TOKEN))
    assert first is not None and again is not None and changed is not None  # noqa: PT018
    assert [first[1], again[1], changed[1]] == [True, False, False]
    assert again[0] == first[0], "the same again changes nothing"
    assert changed[0].id == first[0].id
    assert (changed[0].value, changed[0].comment, changed[0].source) == ("down", None, FeedbackSource.TOKEN)
    assert changed[0].created_at == first[0].created_at < changed[0].updated_at


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["job_1", "job_2", None]),
        st.sampled_from(["rating", "accuracy"]),
        st.sampled_from(["", "ann", "bob"]),
        st.sampled_from([True, False, 0, 1, 1.5, "up", "true", ""]),
    ),
    max_size=12,
)


@pytest.mark.hypothesis
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ACTIONS)
async def test_each_author_has_the_last_value_of_each_metric(
    database: AsyncEngine, actions: list[tuple[str | None, str, str, Any]]
) -> None:
    """Compared with a dictionary, in a new project each time."""
    feedback = FeedbackStore(database)
    owner = await make_owner(database, f"p{datetime.now(UTC).timestamp()}")
    expected: dict[tuple[str | None, str, str], Any] = {}
    for job_id, metric, author, value in actions:
        key = (job_id, metric, author)
        conversation = "c" if job_id is None else None
        put = await feedback.put(
            about(owner, job_id, metric=metric, author=author, value=value, conversation=conversation)
        )
        assert put is not None
        assert put[1] is (key not in expected)
        expected[key] = value
    found = await feedback.page(FeedbackFilters(owner.project_id), limit=100, after=None)
    values = {(one.job_id, one.metric, one.author): one.value for one in found}
    assert values == expected
    assert {key: type(value) for key, value in values.items()} == {key: type(value) for key, value in expected.items()}


async def test_there_is_one_row_if_many_give_it_at_the_same_time(feedback: FeedbackStore, owner: Owner) -> None:
    put = await asyncio.gather(*(feedback.put(about(owner, comment=str(number))) for number in range(8)))
    assert sum(one is not None and one[1] for one in put) == 1
    assert len(await feedback.page(FeedbackFilters(owner.project_id), limit=100, after=None)) == 1


async def test_a_token_gives_a_few_metrics_and_may_change_them(feedback: FeedbackStore, owner: Owner) -> None:
    by_token = {"source": FeedbackSource.TOKEN}
    put = await asyncio.gather(
        *(feedback.put(about(owner, metric=f"m{number}", **by_token)) for number in range(MAX_BY_TOKEN + 4))
    )
    assert sum(one is not None for one in put) == MAX_BY_TOKEN, "also if they come at the same time"
    accepted = next(one[0] for one in put if one is not None)
    assert await feedback.put(about(owner, metric=accepted.metric, value="down", **by_token)) is not None
    assert await feedback.put(about(owner, metric="another", **by_token)) is None
    assert await feedback.put(about(owner, metric="another")) is not None, "a key still can"
    assert await feedback.put(about(owner, "job_2", **by_token)) is not None, "and a token of another answer"


async def test_an_answer_has_only_so_much(database: AsyncEngine, feedback: FeedbackStore, owner: Owner) -> None:
    statement = text(
        "INSERT INTO feedback (project_id, job_id, metric, author, value, source)"
        " SELECT :project, 'job_1', 'rating', 'u' || n, '1', 'key' FROM generate_series(1, :count) n"
    )
    async with database.connect() as connection:
        await connection.execute(statement, {"project": owner.project_id, "count": MAX_OF_TARGET})
    assert await feedback.put(about(owner, author="one more")) is None
    assert await feedback.put(about(owner, author="u7")) is not None
    other = await make_owner(database, "other")
    assert await feedback.put(about(other, author="one more")) is not None


async def test_the_limit_holds_if_many_are_given_at_the_same_time(
    database: AsyncEngine, feedback: FeedbackStore, owner: Owner
) -> None:
    for number in range(MAX_OF_TARGET - 5):
        assert await feedback.put(about(owner, author=f"u{number}")) is not None
    put = await asyncio.gather(*(feedback.put(about(owner, author=f"more{number}")) for number in range(12)))
    assert sum(one is not None for one in put) == 5


async def test_feedback_with_a_key_is_written_by_one_statement(
    database: AsyncEngine, feedback: FeedbackStore, owner: Owner
) -> None:
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(database.sync_engine, "before_cursor_execute", note)
    for _ in range(2):  # it is given, and given again
        assert await feedback.put(about(owner)) is not None
    assert [statement.split()[0] for statement in statements] == ["INSERT"] * 2
    statements.clear()
    assert await feedback.put(about(owner, metric="m", source=FeedbackSource.TOKEN)) is not None
    assert [statement.split()[0] for statement in statements] == ["SELECT", "INSERT"], "one after the other"


async def test_pages(database: AsyncEngine, feedback: FeedbackStore, owner: Owner) -> None:
    other = await make_owner(database, "other")
    await feedback.put(about(other))
    for number in range(5):
        await feedback.put(about(owner, f"job_{number}", author=f"u{number % 2}"))
    # Written in the same moment, or by a clock that was behind.
    async with database.connect() as connection:
        await connection.execute(text("UPDATE feedback SET created_at = now() WHERE job_id IN ('job_1', 'job_3')"))
    mine = FeedbackFilters(owner.project_id)
    everything = await feedback.page(mine, limit=100, after=None)
    assert [one.job_id for one in everything] == ["job_3", "job_1", "job_4", "job_2", "job_0"]
    pages: list[str | None] = []
    after: int | None = None
    while page := await feedback.page(mine, limit=2, after=after):
        pages += [one.job_id for one in page]
        after = page[-1].id
    assert pages == [one.job_id for one in everything]
    of_user = await feedback.page(FeedbackFilters(owner.project_id, author="u1"), limit=9, after=None)
    assert {one.job_id for one in of_user} == {"job_1", "job_3"}
    later = FeedbackFilters(owner.project_id, start=datetime.now(UTC) + timedelta(hours=1))
    assert await feedback.page(later, limit=9, after=None) == []
    assert len(await feedback.page(FeedbackFilters(), limit=9, after=None)) == 6


@pytest.mark.parametrize(
    "moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "0001-01-01", "9999-12-31"]
)
async def test_times_beyond_those_of_postgresql_select_all_or_nothing(
    database: AsyncEngine, feedback: FeedbackStore, owner: Owner, moment: str
) -> None:
    await feedback.put(about(owner))
    tokens = FeedbackTokens(SecretStore(database), 0)
    service = FeedbackService(feedback, tokens, ApiKeyStore(database), api_metrics("m"))
    principal = Principal(owner.project_id, owner.key_id, frozenset({Scope.INFERENCE}))
    start = datetime.fromisoformat(moment)
    page = await service.page(principal, project=None, limit=9, after=None, start=start)
    assert len(page.items) == (1 if start.year == 1 else 0)
    page = await service.page(principal, project=None, limit=9, after=None, end=start)
    assert len(page.items) == (0 if start.year == 1 else 1)


async def test_pages_go_on_after_deleted_feedback(feedback: FeedbackStore, owner: Owner) -> None:
    """As for a client that deletes what it has listed."""
    for number in range(5):
        await feedback.put(about(owner, f"job_{number}"))
    mine, found = FeedbackFilters(owner.project_id), list[str | None]()
    after: int | None = None
    while page := await feedback.page(mine, limit=2, after=after):
        found += [one.job_id for one in page]
        after = page[-1].id
        for one in page:
            assert await feedback.delete(one.id, owner.project_id)
    assert found == ["job_4", "job_3", "job_2", "job_1", "job_0"]


async def test_only_feedback_of_the_project_is_deleted(
    database: AsyncEngine, feedback: FeedbackStore, owner: Owner
) -> None:
    other = await make_owner(database, "other")
    put = await feedback.put(about(owner))
    assert put is not None
    assert not await feedback.delete(put[0].id, other.project_id)
    assert await feedback.delete(put[0].id, owner.project_id)
    assert not await feedback.delete(put[0].id, owner.project_id)


async def test_all_processes_have_the_secret_of_the_first(database: AsyncEngine) -> None:
    secrets = await asyncio.gather(*(SecretStore(database).secret() for _ in range(4)))
    assert len(set(secrets)) == 1
    assert len(secrets[0]) == 32
