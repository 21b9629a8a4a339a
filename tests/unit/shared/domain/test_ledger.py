"""The entries of a job: what each attempt has used, and what the job is charged for."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.decisions import CacheDecision, Decisions
from shared.domain.events import Delta, Event, EventType, UpstreamState, delta_event, event
from shared.domain.job import Attempt, AttemptOutcome, JobStatus, JobSummary, Usage
from shared.domain.ledger import COUNT_TOKENS, Counts, Entry, Run, Source, build_entries
from shared.domain.owner import Owner
from shared.domain.result import build_result
from shared.postgres.usage_tables import TOKEN_COUNTS
from tests.support.transcripts import transcript_of

NOW = datetime(2026, 11, 30, tzinfo=UTC)
JOB = JobSummary(id="job_1", owner=Owner(1, 1), model="m", status=JobStatus.IN_PROGRESS, priority=3, created_at=NOW)
NOTHING = Counts()


def attempt(number: int, outcome: str, tokens: int = 0, model: str | None = "m") -> Attempt:
    ended_at = NOW + timedelta(seconds=number)
    return Attempt(number, "w", NOW, ended_at, tokens, outcome, model=model)


def entries(
    *attempts: Attempt,
    usage: Usage,
    status: JobStatus = JobStatus.COMPLETED,
    source: Source = Source.ENGINE,
    runs: dict[int, Run] | None = None,
    job: JobSummary = JOB,
    estimate: int = 0,
) -> tuple[Entry, ...]:
    found = build_entries(job, attempts, usage, status=status, source=source, runs=runs or {}, estimate=estimate)
    assert [entry.attempt for entry in found] == [one.number for one in attempts]
    assert [entry.final for entry in found] == [False] * (len(found) - 1) + [True] * bool(found)
    return found


def charged(entry: Entry) -> Counts:
    return entry.counts if entry.charged is None else entry.charged


def test_the_counts_are_those_of_the_table() -> None:
    assert tuple(field.name for field in fields(Counts)) == TOKEN_COUNTS


def test_each_attempt_has_the_engine_of_the_model_that_served_it() -> None:
    """A job that has moved to another model; the attempt of an earlier version names none, and is the job's."""
    attempts = [attempt(1, "rerouted", model="large"), attempt(2, "rerouted", model="gone"), attempt(3, "completed")]
    engines = {"large": "anthropic", "m": "vllm"}
    found = build_entries(
        JOB, [*attempts[:2], replace(attempts[2], model=None)], Usage(10, 0, 5), status=JobStatus.COMPLETED,
        source=Source.ENGINE, runs={}, engine_of=engines.get,
    )  # fmt: skip
    assert [entry.engine for entry in found] == ["anthropic", None, "vllm"]
    assert [entry.stored()["engine"] for entry in found] == ["anthropic", None, "vllm"]


@given(st.builds(Usage, *[st.integers(0, 9)] * 6))
def test_the_counts_of_a_usage_add_up_whatever_was_reported(usage: Usage) -> None:
    counts = Counts.of(usage)
    assert sum(counts.stored().values()) == usage.prompt_tokens + usage.completion_tokens
    assert all(getattr(counts, name) >= 0 for name in TOKEN_COUNTS)


def test_the_counts_of_a_usage_are_disjoint() -> None:
    usage = Usage(100, 20, 50, 30, 15, 5)
    assert Counts.of(usage) == Counts(65, 20, 10, 5, 20, 30)


def test_a_completed_job() -> None:
    (entry,) = entries(attempt(1, "completed", 5), usage=Usage(10, 4, 5), runs={1: Run(5)})
    assert (entry.counts, entry.charged) == (Counts(6, 4, output_text=5), None)
    assert (entry.source, entry.model, entry.outcome, entry.service_tier) == ("engine", "m", "completed", "default")
    assert entry.ended_at == NOW + timedelta(seconds=1)


def test_what_a_provider_has_reported() -> None:
    usage = Usage(10, 4, 9, 5, 3, 1, "flex")
    (entry,) = entries(attempt(1, "completed", 9), usage=usage, source=Source.PROVIDER, runs={1: Run(9)})
    assert (entry.counts, entry.charged) == (Counts(3, 4, 2, 1, 4, 5), None)
    assert (entry.source, entry.service_tier) == ("provider", "flex")


@pytest.mark.parametrize("status", [JobStatus.INCOMPLETE, JobStatus.CANCELLED, JobStatus.EXPIRED])
def test_an_answer_that_was_cut_is_charged_as_far_as_it_was_delivered(status: JobStatus) -> None:
    (entry,) = entries(attempt(1, "cancelled", 2), usage=Usage(10, 0, 2), status=status, runs={1: Run(2)})
    assert charged(entry) == entry.counts == Counts(10, output_text=2)


@pytest.mark.parametrize(("status", "tokens"), [(JobStatus.FAILED, 0), (JobStatus.FAILED, 7), (JobStatus.CANCELLED, 0)])
def test_failures_and_cancellations_before_the_first_token_are_not_charged(status: JobStatus, tokens: int) -> None:
    usage = Usage(10, 0, tokens)
    (entry,) = entries(attempt(1, status.value, tokens), usage=usage, status=status, runs={1: Run(tokens)})
    assert (entry.counts, charged(entry)) == (Counts(10, output_text=tokens), NOTHING)


def test_a_request_that_an_upstream_has_refused_used_nothing() -> None:
    (entry,) = entries(
        attempt(1, "failed"), usage=Usage(), status=JobStatus.FAILED, source=Source.ESTIMATE, estimate=50
    )
    assert (entry.counts, entry.charged, entry.source) == (NOTHING, None, "estimate")


def test_an_upstreams_answer_that_was_cut_before_its_usage_is_estimated() -> None:
    (entry,) = entries(
        attempt(1, "cancelled", 3), usage=Usage(0, 0, 3), status=JobStatus.CANCELLED, source=Source.ESTIMATE,
        runs={1: Run(3)}, estimate=50,
    )  # fmt: skip
    assert (entry.counts, charged(entry), entry.source) == (Counts(50, output_text=3),) * 2 + ("estimate",)


def test_an_answer_that_a_second_worker_has_continued() -> None:
    """The first worker's tokens are those of the log. They are input to the second one, but are not charged again."""
    runs = {1: Run(4, prompt_tokens=10), 2: Run(6, prior=4)}
    lost, final = entries(
        attempt(1, "worker_lost", 4), attempt(2, "completed", 6), usage=Usage(10, 8, 10), runs=runs
    )  # fmt: skip
    assert (lost.counts, lost.source) == (Counts(10, output_text=4), "estimate")
    assert charged(lost) == NOTHING
    assert (final.counts, final.source) == (Counts(2 + 4, 8, output_text=6), "engine")
    assert charged(final) == Counts(2, 8, output_text=10)


def test_an_answer_that_has_started_again_is_charged_once() -> None:
    runs = {1: Run(4), 2: Run(10)}
    lost, final = entries(
        attempt(1, "engine_lost", 4), attempt(2, "completed", 10), usage=Usage(10, 0, 10), runs=runs
    )  # fmt: skip
    assert lost.counts.output_text + final.counts.output_text == 14
    assert charged(final) == final.counts == Counts(10, output_text=10)


def test_tokens_that_an_attempt_has_discarded_cost_but_are_not_charged() -> None:
    (entry,) = entries(attempt(1, "completed", 8), usage=Usage(10, 0, 5), runs={1: Run(8)})
    assert (entry.counts.output_text, charged(entry).output_text) == (8, 5)


def test_a_request_of_an_upstream_that_several_attempts_have_read_has_its_input_once() -> None:
    runs = {1: Run(4), 2: Run(2, prior=4, resumed=True), 3: Run(3, prior=6)}
    first, second, final = entries(
        attempt(1, "handed_back", 4), attempt(2, "handed_back", 2), attempt(3, "completed", 3),
        usage=Usage(10, 0, 9), source=Source.PROVIDER, runs=runs,
    )  # fmt: skip
    assert first.counts == Counts(output_text=4)
    assert second.counts == Counts(10, output_text=2), "the input of the request that both have read"
    assert final.counts == Counts(10 + 6, output_text=3), "another request, with the text so far"
    assert charged(final) == Counts(10, output_text=9)


def test_a_lost_attempt_without_a_token_may_have_read_the_input() -> None:
    *others, _ = entries(
        attempt(1, "worker_lost"), attempt(2, "handed_back"), attempt(3, "deferred"), attempt(4, "completed", 1),
        usage=Usage(10, 0, 1), runs={4: Run(1)},
    )  # fmt: skip
    assert [entry.counts for entry in others] == [Counts(10), NOTHING, NOTHING]


def test_the_attempt_of_a_model_that_another_one_has_taken_over_from() -> None:
    job = replace(JOB, model="n")
    first, final = entries(
        attempt(1, "rerouted", model="m"), attempt(2, "completed", 3, model=None), usage=Usage(10, 0, 3), job=job,
        runs={2: Run(3)},
    )  # fmt: skip
    assert (first.model, first.counts, final.model) == ("m", NOTHING, "n")


def test_a_job_that_ends_without_its_worker() -> None:
    """Its usage has the tokens that the log has, and not the prompt."""
    runs = {1: Run(4, prompt_tokens=10)}
    arguments: dict[str, Any] = {"usage": Usage(0, 0, 4), "source": Source.ESTIMATE, "runs": runs, "estimate": 99}
    (entry,) = entries(attempt(1, "worker_lost", 4), status=JobStatus.CANCELLED, **arguments)
    assert (entry.counts, charged(entry)) == (Counts(10, output_text=4),) * 2
    (entry,) = entries(attempt(1, "worker_lost", 4), status=JobStatus.FAILED, **arguments)
    assert (entry.counts, charged(entry)) == (Counts(10, output_text=4), NOTHING)


def test_a_job_that_is_cancelled_while_it_waits_for_its_next_attempt() -> None:
    (entry,) = entries(
        attempt(1, "handed_back", 4), usage=Usage(0, 0, 4), status=JobStatus.CANCELLED, source=Source.ESTIMATE,
        runs={1: Run(4, prompt_tokens=10)},
    )  # fmt: skip
    assert (entry.final, entry.outcome, charged(entry)) == (True, "handed_back", Counts(10, output_text=4))


def test_a_job_without_an_attempt_has_no_entry() -> None:
    assert entries(usage=Usage(), status=JobStatus.CANCELLED, source=Source.ESTIMATE, estimate=50) == ()


def test_tokens_of_which_the_log_is_lost_are_those_of_the_history() -> None:
    first, final = entries(
        attempt(1, "handed_back", 4), attempt(2, "completed", 9), usage=Usage(10, 0, 9), runs={2: Run(9)}
    )  # fmt: skip
    assert first.counts == Counts(10, output_text=4)
    assert charged(final) == Counts(10, output_text=9)


def inheriting(**counts: int) -> JobSummary:
    return replace(JOB, decisions=Decisions(cache=CacheDecision(outcome="MISS", inherited=counts)))


def test_a_follower_that_continues_an_answer_is_not_charged_for_its_beginning() -> None:
    """It processes the prompt, and the beginning, itself."""
    job = inheriting(completion_tokens=4)
    (entry,) = entries(attempt(1, "completed", 6), usage=Usage(10, 0, 10), job=job, runs={1: Run(6, prior=4)})
    assert entry.counts == Counts(10 + 4, output_text=6)
    assert charged(entry) == Counts(10, output_text=6)


def test_a_generation_that_was_handed_over_has_its_prompt_once() -> None:
    job = inheriting(prompt_tokens=10, cached_tokens=0, completion_tokens=4)
    run = Run(6, prior=4)
    (entry,) = entries(attempt(1, "completed", 6), usage=Usage(10, 0, 10), job=job, runs={1: run})
    assert entry.counts == charged(entry) == Counts(output_text=6)
    lost, final = entries(
        attempt(1, "worker_lost", 2), attempt(2, "completed", 4), usage=Usage(10, 0, 10), job=job,
        runs={1: Run(2, prior=4), 2: Run(4, prior=6)},
    )  # fmt: skip
    assert (lost.counts, final.counts) == (Counts(output_text=2), Counts(10 + 6, output_text=4))
    assert charged(final) == Counts(output_text=6)


def test_jobs_that_count_tokens_are_not_charged() -> None:
    (entry,) = entries(attempt(1, "completed"), usage=Usage(10), job=replace(JOB, kind=COUNT_TOKENS))
    assert (entry.counts, charged(entry)) == (Counts(10), NOTHING)


def test_a_prompt_without_output_is_charged_if_it_was_all_that_was_requested() -> None:
    (entry,) = entries(attempt(1, "completed"), usage=Usage(10))
    assert charged(entry) == Counts(10)


def test_reasoning_is_a_part_of_the_output_of_the_last_attempt() -> None:
    runs = {1: Run(5), 2: Run(2, prior=5)}
    _, final = entries(
        attempt(1, "worker_lost", 5), attempt(2, "completed", 2), usage=Usage(10, 0, 7, 6), runs=runs,
        source=Source.PROVIDER,
    )  # fmt: skip
    assert (final.counts.output_text, final.counts.output_reasoning) == (0, 2)
    assert charged(final) == Counts(10, output_text=1, output_reasoning=6)


def test_the_stored_form_has_all_counts_and_those_of_the_charge_only_if_they_differ() -> None:
    entry = Entry(1, NOW, "m", "completed", Counts(1, 2, 3, 4, 5, 6), Source.ENGINE, final=True, engine="vllm")
    stored = orjson.loads(orjson.dumps(entry.stored()))
    assert stored == {
        "attempt": 1, "ended_at": "2026-11-30T00:00:00+00:00", "model": "m", "engine": "vllm",
        "service_tier": "default", "outcome": "completed", "final": True, "source": "engine",
        **dict(zip(TOKEN_COUNTS, range(1, 7), strict=True)),
    }  # fmt: skip
    assert replace(entry, charged=Counts(output_text=5)).stored()["charged"] == {"output_text": 5}


# What the log knows of attempts.


def started(attempt: int, continues: str | None = None) -> Event:
    payload = {"attempt": attempt, "worker": "w", "fingerprint": f"of {continues or 'the leader'}"}
    return event(1, EventType.STARTED, payload if continues is None else {**payload, "continues": continues})


def deltas(*ids: int, prompt: int | None = None) -> Event:
    return delta_event(1, Delta(0, "a", ids, prompt_tokens=prompt))


def restarted(attempt: int) -> Event:
    return event(1, EventType.RESTARTED, {"attempt": attempt})


ACCEPTED = event(1, EventType.UPSTREAM, UpstreamState("resp_1").payload())


def test_attempts_in_a_log() -> None:
    runs = transcript_of([started(1), deltas(1, 2, prompt=10), deltas(3), started(2), deltas(4)]).runs
    assert runs == {1: Run(3, prompt_tokens=10), 2: Run(1, prior=3)}


def test_an_attempt_that_starts_again_has_no_prior_tokens() -> None:
    before = transcript_of([started(1), deltas(1, 2), restarted(2), started(2), deltas(3)]).runs
    assert before == {1: Run(2), 2: Run(1)}
    within = transcript_of([started(1), deltas(1, 2), started(2), deltas(3), restarted(2), deltas(4)]).runs
    assert within == {1: Run(2), 2: Run(2)}, "all tokens of an attempt count, discarded ones too"
    later = [started(1), deltas(1), started(2), deltas(2), restarted(3), started(3)]
    assert transcript_of(later).runs[2] == Run(1, prior=1), "that another attempt starts again changes nothing"


def test_an_attempt_resumes_a_request_unless_it_sends_another_one() -> None:
    resumed = transcript_of([started(1), ACCEPTED, deltas(1), started(2), deltas(2)]).runs
    assert resumed[2] == Run(1, prior=1, resumed=True)
    other = transcript_of([started(1), ACCEPTED, deltas(1), started(2), ACCEPTED, deltas(2)]).runs
    assert other[2] == Run(1, prior=1)


def test_a_log_that_begins_with_that_of_another_job_has_the_attempts_of_the_last_one() -> None:
    leader = [started(1), deltas(1, 2), started(2), deltas(3)]
    own = [started(1, "job_l"), deltas(4), started(2, "job_l"), deltas(5)]
    assert transcript_of([*leader, *own], after="job_l").runs == {1: Run(1, prior=3), 2: Run(1, prior=4)}
    lost_early = [started(2, "job_l"), deltas(4)]
    assert transcript_of([*leader, *lost_early], after="job_l").runs == {2: Run(1, prior=3)}, "its first one is unknown"
    assert transcript_of(leader, after="job_l").runs == {}, "it has none yet"
    of_leader = [*leader, started(1, "job_l"), deltas(4)]
    assert transcript_of(of_leader, after="job_m").runs == {}, "the leader has continued another job itself"
    assert transcript_of([*of_leader, started(2, "job_m"), deltas(5)], after="job_m").runs == {2: Run(1, prior=4)}


async def test_a_lost_attempt_of_a_released_follower_costs_nothing_of_its_leaders() -> None:
    """The worker of its first attempt dies when it has copied the leader's log and written nothing to it."""
    events = [started(1), deltas(1, 2, prompt=10), started(2, "job_l"), deltas(3)]
    lost, running = attempt(1, "worker_lost"), replace(attempt(2, ""), outcome=None)
    job = replace(JOB, attempt=2, continues="job_l", attempts=(lost, running))
    result, _ = await build_result(
        job,
        events,
        9,
        status=JobStatus.COMPLETED,
        output=(),
        usage=Usage(10, 0, 3),
        failure=None,
        first_token_at=NOW,
        finished_at=NOW + timedelta(seconds=9),
        outcome=AttemptOutcome.COMPLETED,
        runs=transcript_of(events, after=job.begins_with).runs,
        source=Source.ENGINE,
    )
    first, last = result.entries
    assert (first.counts.output_text, last.counts.output_text) == (0, 1)
    assert result.attempts[0].fingerprint is None


async def test_the_result_of_a_job_has_its_entries() -> None:
    events = [started(1), deltas(1, 2, prompt=10), started(2), deltas(3)]
    job = replace(JOB, attempt=2, attempts=(attempt(1, "worker_lost"), replace(attempt(2, ""), outcome=None)))
    result, _ = await build_result(
        job,
        events,
        9,
        status=JobStatus.COMPLETED,
        output=(),
        usage=Usage(10, 0, 3),
        failure=None,
        first_token_at=NOW,
        finished_at=NOW + timedelta(seconds=9),
        outcome=AttemptOutcome.COMPLETED,
        runs=transcript_of(events).runs,
        source=Source.ENGINE,
    )
    assert [one.tokens for one in result.attempts] == [2, 1]
    lost, final = result.entries
    assert (lost.counts, final.counts) == (Counts(10, output_text=2), Counts(12, output_text=1))
    assert charged(final) == Counts(10, output_text=3)


async def test_the_prompt_of_a_generation_that_goes_on_for_another_job_is_not_estimated() -> None:
    events = [started(1), deltas(1, 2)]
    for handed_over, admitted, prompt in ((False, 50, 50), (False, None, 40), (True, 50, 0), (True, None, 0)):
        job = replace(JOB, attempts=(attempt(1, "cancelled"),), decisions=Decisions(estimated_tokens=admitted))
        result, _ = await build_result(
            job,
            events,
            9,
            status=JobStatus.CANCELLED,
            output=(),
            usage=Usage(0, 0, 2),
            failure=None,
            first_token_at=NOW,
            finished_at=NOW,
            outcome=AttemptOutcome.CANCELLED,
            runs=transcript_of(events).runs,
            handed_over=handed_over,
            prompt_estimate=40,
        )
        (entry,) = result.entries
        assert charged(entry) == Counts(prompt, output_text=2)


@pytest.mark.parametrize(
    ("runs", "tokens"),
    [
        ({1: Run(28), 3: Run(88)}, [28, 0, 88]),  # the second attempt was over before the log had anything of it
        ({1: Run(28), 2: Run(0), 3: Run(88)}, [28, 0, 88]),
        ({3: Run(88)}, [60, 25, 88]),  # the log was lost before the third
    ],
)
async def test_attempts_have_the_tokens_that_reached_the_log(runs: dict[int, Run], tokens: list[int]) -> None:
    attempts = (attempt(1, "set_aside", 60), attempt(2, "set_aside", 25), attempt(3, "completed"))
    result, _ = await build_result(
        replace(JOB, attempts=attempts),
        [],
        1,
        status=JobStatus.COMPLETED,
        output=(),
        usage=Usage(6, 0, 116),
        failure=None,
        first_token_at=NOW,
        finished_at=NOW,
        outcome=AttemptOutcome.COMPLETED,
        runs=runs,
    )
    assert [one.tokens for one in result.attempts] == tokens
