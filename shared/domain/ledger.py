"""The entries of the ledger: what each attempt of a job has used, and what its project is charged for.

Two questions are kept apart. The *cost* of an entry is that of all tokens that its attempt has processed. The *charge*
is on a job's last entry, the final one: it is for the input once, and for the output that was delivered. So a client
does not pay for an attempt that was lost, nor for a job that has failed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from shared.domain.job import SUCCEEDED, Attempt, AttemptOutcome, JobStatus, JobSummary, Usage

# The `kind` of jobs that clients submit, and of those that only count the tokens of a prompt.
GENERATE = "generate"
COUNT_TOKENS = "count_tokens"
# The `kind` of entries about what no job has asked for: prefixes that a worker computes to fill its prompt cache.
WARM_UP = "warm_up"
# The outcome of the entry of a job that has the answer of another one.
ANSWERED = "answered"
# The service tier of requests that were served in no other one.
DEFAULT_TIER = "default"
# The attempts whose worker or engine died. They may have processed the prompt, even without a token in the log.
_DIED = (AttemptOutcome.WORKER_LOST, AttemptOutcome.ENGINE_LOST)


# Returns the engine of a model, `engine` in models.yaml; None if the model is not declared.
EngineOf = Callable[[str], str | None]


def unknown_engine(model: str) -> None:
    """The `EngineOf` of a process that has read no models."""
    return


class Source(StrEnum):
    """Where the counts of an entry are from."""

    # The engine that ran the request here, and the provider that it was relayed to.
    ENGINE = "engine"
    PROVIDER = "provider"
    # They were not reported, and are those of the log, or estimated.
    ESTIMATE = "estimate"


@dataclass(frozen=True, slots=True)
class Counts:
    """Disjoint token counts. `input_cache_write_5m`: the tokens that a provider has cached, but not for an hour."""

    input_fresh: int = 0
    input_cache_read: int = 0
    input_cache_write_5m: int = 0
    input_cache_write_1h: int = 0
    output_text: int = 0
    output_reasoning: int = 0

    @classmethod
    def of(cls, usage: Usage) -> Counts:
        """The counts of a usage. A part is never larger than the whole, whatever was reported."""
        read = min(usage.cached_tokens, usage.prompt_tokens)
        written = min(usage.cache_write_tokens, usage.prompt_tokens - read)
        for_an_hour = min(usage.cache_write_1h_tokens, written)
        reasoning = min(usage.reasoning_tokens, usage.completion_tokens)
        return cls(
            input_fresh=usage.prompt_tokens - read - written,
            input_cache_read=read,
            input_cache_write_5m=written - for_an_hour,
            input_cache_write_1h=for_an_hour,
            output_text=usage.completion_tokens - reasoning,
            output_reasoning=reasoning,
        )

    def stored(self) -> dict[str, int]:
        """The counts by their names."""
        return {name: getattr(self, name) for name in _COUNTS}


_COUNTS = tuple(field.name for field in fields(Counts))
_NONE = Counts()


@dataclass(slots=True)
class Run:
    """What is known of the generation of an attempt.

    `tokens` it has generated, discarded ones included; `prior` are those that it has continued from. `resumed`: it has
    read on the upstream's request of the attempt before it, which counts its input once. `prompt_tokens`: 0 if unknown.
    """

    tokens: int = 0
    prior: int = 0
    resumed: bool = False
    prompt_tokens: int = 0


# A run of which the log has nothing any more.
_UNKNOWN = Run()


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the ledger: one attempt of a job. `charged` are the counts that its charge is for; None: its own.

    `counted`: our own numbers of `input` and `output` tokens, if those that the provider has reported cannot be right.
    `engine`: that of the model; None if it is not known.
    """

    attempt: int
    ended_at: datetime
    model: str
    outcome: str
    counts: Counts
    source: Source
    final: bool = False
    service_tier: str = DEFAULT_TIER
    charged: Counts | None = None
    counted: Mapping[str, int] | None = None
    engine: str | None = None

    def stored(self) -> dict[str, Any]:
        """The form that the statement which ends the job reads."""
        stored: dict[str, Any] = {
            "attempt": self.attempt,
            "ended_at": self.ended_at,
            "model": self.model,
            "engine": self.engine,
            "service_tier": self.service_tier,
            "outcome": self.outcome,
            "final": self.final,
            "source": self.source.value,
            **self.counts.stored(),
        }
        if self.charged is not None:
            stored["charged"] = {name: count for name, count in self.charged.stored().items() if count}
        if self.counted is not None:
            stored["counted"] = self.counted
        return stored


def build_entries(
    job: JobSummary,
    attempts: Sequence[Attempt],
    usage: Usage,
    *,
    status: JobStatus,
    source: Source,
    runs: Mapping[int, Run],
    estimate: int = 0,
    counted: Mapping[str, int] | None = None,
    engine_of: EngineOf = unknown_engine,
) -> tuple[Entry, ...]:
    """The entries of a job that ends with these attempts, all of which have ended; one each, the last one is final.

    `usage` is that of the job. `source`: who reported it to the last attempt; `ESTIMATE` if nobody did. `runs` are by
    the numbers of attempts. `estimate`: the tokens of the prompt, if neither the usage nor the log has them.
    `counted`: as in `Entry`, of the last one.
    """
    prompt = usage.prompt_tokens or max((run.prompt_tokens for run in runs.values()), default=0) or estimate
    whole = replace(usage, prompt_tokens=prompt)
    entries: list[Entry] = []
    is_resumed = False
    for attempt in reversed(attempts):
        run, own = runs.get(attempt.number, _UNKNOWN), whole
        if attempt is attempts[0]:
            own = job.charged(whole)
            if _was_handed_over(job):
                run = replace(run, prior=0)
        # The upstream counts the input of a request once, however often it was read: for the last attempt that did.
        counts = _estimate(attempt, 0 if is_resumed else own.prompt_tokens + _read_again(run))
        model = attempt.model or job.model
        entry = Entry(
            attempt.number,
            attempt.ended_at or job.created_at,
            model,
            attempt.outcome or status.value,
            counts,
            Source.ESTIMATE,
            charged=None if counts == _NONE else _NONE,
            engine=engine_of(model),
        )
        if not entries:
            if source is not Source.ESTIMATE:
                counts = _reported(attempt, run, own)
            charged = _charged(job, whole, status)
            entry = replace(
                entry,
                counts=counts,
                source=source,
                final=True,
                service_tier=usage.service_tier or DEFAULT_TIER,
                charged=None if charged == counts else charged,
                counted=counted,
            )
        entries.append(entry)
        is_resumed = run.resumed
    return tuple(reversed(entries))


def _estimate(attempt: Attempt, input_tokens: int) -> Counts:
    """The counts of an attempt that nobody has reported. One that ended without a token has not read the input."""
    if not (attempt.tokens or attempt.outcome in _DIED):
        return _NONE
    return Counts(input_fresh=input_tokens, output_text=attempt.tokens)


def _reported(attempt: Attempt, run: Run, usage: Usage) -> Counts:
    """The counts of the attempt whose engine has reported the usage, which has the prompt and all output of the job.

    The tokens that the attempt has continued from were input to it.
    """
    counts = Counts.of(usage)
    reasoning = min(counts.output_reasoning, attempt.tokens)
    return replace(
        counts,
        input_fresh=counts.input_fresh + _read_again(run),
        output_text=attempt.tokens - reasoning,
        output_reasoning=reasoning,
    )


def _read_again(run: Run) -> int:
    """The output of earlier attempts that was input to this one."""
    return 0 if run.resumed else run.prior


def _was_handed_over(job: JobSummary) -> bool:
    """Whether the job's first attempt runs a generation of another job on, which has processed the prompt."""
    cache = job.decisions.cache
    return cache is not None and cache.inherited is not None and "prompt_tokens" in cache.inherited


def _charged(job: JobSummary, usage: Usage, status: JobStatus) -> Counts:
    """What a job is charged for: its input once, and the output that was generated for it and delivered."""
    own = job.charged(usage)
    if status not in SUCCEEDED and (status is JobStatus.FAILED or not own.completion_tokens):
        return _NONE
    return _NONE if job.kind == COUNT_TOKENS else Counts.of(own)
