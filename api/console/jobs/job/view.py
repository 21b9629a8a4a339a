"""What the page of a job shows, apart from its answer and its request. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from api.console.data.timeline import Mark, MarkKind, SpanKind, Timeline, job_timeline
from api.console.filters import Quantity, duration, milliseconds, number, plural, quantity, short_id
from api.console.jobs.job.cost import Costs, costs_of
from api.console.jobs.job.picture import NARROW, WIDE, Picture, draw, legend
from api.console.jobs.ledger_store import LedgerEntry
from api.console.jobs.view import STATUSES
from api.console.key_names import KeyNames
from api.keys.store import format_id
from shared.domain.job import AttemptOutcome, JobStatus, JobSummary
from shared.domain.priorities import BATCH_PRIORITY
from shared.redis.log_flushes import Flush

_LOSSES = (AttemptOutcome.WORKER_LOST, AttemptOutcome.ENGINE_LOST)
_OUTCOMES = {
    AttemptOutcome.HANDED_BACK: "put back: its worker was drained",
    AttemptOutcome.SET_ASIDE: "put back: an urgent job needed its slot",
    AttemptOutcome.ENGINE_LOST: "its engine died",
    AttemptOutcome.WORKER_LOST: "its worker was lost",
    AttemptOutcome.DEFERRED: "put back: the upstream was busy",
    AttemptOutcome.REROUTED: "handed to another model",
}


@dataclass(frozen=True, slots=True)
class Stat:
    """A card with one number, and its context in one line."""

    title: str
    quantity: Quantity
    context: str


@dataclass(frozen=True, slots=True)
class Fact:
    """A line of an explanation. `link`: the id of a job that it is about. `code`: whether its text is a name."""

    name: str
    text: str
    link: str | None = None
    code: bool = False
    more: str = ""


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """A moment of a job's life. `after`: the time since the submission."""

    at: datetime
    after: str
    label: str
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class JobPageView:
    """The parts of the page that change while the job is open."""

    id: str
    status: str
    kind: str
    is_open: bool
    can_cancel: bool
    stats: Sequence[Stat]
    pictures: Sequence[tuple[Picture, str]]
    legend: Sequence[tuple[str, str]]
    facts: Sequence[Fact]
    metadata: Sequence[tuple[str, str]]
    history: Sequence[HistoryEntry]
    costs: Costs
    error: str | None
    is_paused: bool


def build_view(
    job: JobSummary,
    flushes: Sequence[Flush],
    names: KeyNames,
    now: datetime,
    *,
    is_paused: bool = False,
    entries: Sequence[LedgerEntry] = (),
    is_operator: bool = False,
) -> JobPageView:
    """The view of a job now. `is_paused`: it waits because its model's queue is paused. `entries`: of the ledger."""
    timeline = job_timeline(job, flushes)
    status, kind = STATUSES[job.status]
    return JobPageView(
        id=job.id,
        status=status,
        kind=kind,
        is_open=not job.status.terminal,
        can_cancel=job.status in (JobStatus.QUEUED, JobStatus.IN_PROGRESS),
        stats=(
            _first_token(job, timeline, flushes, now),
            _output(job, timeline, now),
            _prompt(job),
            _run(job, timeline, now),
        ),
        pictures=((draw(job, timeline, now, WIDE), "wide"), (draw(job, timeline, now, NARROW), "narrow")),
        legend=legend(timeline),
        facts=_facts(job, names),
        metadata=list(job.metadata.items()),
        history=[_entry(job, mark) for mark in timeline.marks],
        costs=costs_of(entries, is_operator=is_operator),
        error=f"{job.error.code}: {job.error.message}" if job.error is not None else None,
        is_paused=is_paused,
    )


def _first_token(job: JobSummary, timeline: Timeline, flushes: Sequence[Flush], now: datetime) -> Stat:
    first = next((mark.at for mark in timeline.marks if mark.kind is MarkKind.FIRST_TOKEN), None)
    if first is None:
        waited = (job.finished_at or now) - job.created_at
        context = "ended without output" if job.status.terminal else f"{duration(waited.total_seconds())} so far"
        return Stat("First token", Quantity("–", ""), context)
    parts = [("queue", seconds)] if (seconds := _before(timeline, first, SpanKind.QUEUED, SpanKind.DEFERRED)) else []
    if seconds := _before(timeline, first, SpanKind.FOLLOWING):
        parts.append(("followed another", seconds))
    prefill = _before(timeline, first, SpanKind.PREFILL)
    started = next((span.start for span in timeline.spans if span.kind is SpanKind.PREFILL), None)
    begun = next((flush.at for flush in flushes if not flush.tokens and not flush.restarted), None)
    if started is not None and begun is not None and len(job.attempts) == 1 and started < begun < first:
        claim = (begun - started).total_seconds()
        parts.append(("claim", claim))
        prefill = max(0.0, prefill - claim)
    if prefill:
        parts.append(("prefill", prefill))
    if lost := _before(timeline, first, SpanKind.SILENT, SpanKind.RESCUE):
        parts.append(("rescue", lost))
    context = " · ".join(f"{name} {duration(seconds)}" for name, seconds in parts)
    return Stat("First token", quantity((first - job.created_at).total_seconds()), context or "at once")


def _before(timeline: Timeline, moment: datetime, *kinds: SpanKind) -> float:
    """The seconds that spans of some kinds took before a moment."""
    return sum(
        (min(span.end or moment, moment) - span.start).total_seconds()
        for span in timeline.spans
        if span.kind in kinds and span.start < moment
    )


def _output(job: JobSummary, timeline: Timeline, now: datetime) -> Stat:
    tokens = job.usage.completion_tokens if job.usage is not None else sum(flush.tokens for flush in timeline.flushes)
    generating_s = timeline.seconds(SpanKind.GENERATING, now)
    parts = []
    if tokens > 1 and generating_s > 0.001:
        parts.append(f"{number(_rounded(tokens / generating_s))} tokens/s while generating")
    if job.usage is not None and job.usage.reasoning_tokens:
        parts.append(f"{number(job.usage.reasoning_tokens)} of reasoning")
    if job.choices > 1:
        parts.append(f"{job.choices} answers")
    if not parts:
        parts.append("none yet" if not job.status.terminal and not tokens else "in one step" if tokens else "no output")
    return Stat("Output", Quantity(number(tokens), "token" if tokens == 1 else "tokens"), " · ".join(parts))


def _rounded(rate: float) -> float:
    return round(rate) if rate >= 10 else round(rate, 1)


def _prompt(job: JobSummary) -> Stat:
    usage = job.usage
    if usage is None:
        estimate = job.decisions.estimated_tokens
        context = "counted when the job ends" if not job.status.terminal else "was not counted"
        if estimate is None:
            return Stat("Prompt", Quantity("–", "tokens"), context)
        return Stat("Prompt", Quantity(f"≈{number(estimate)}", "tokens"), f"an estimate; {context}")
    if usage.cached_tokens:
        context = f"{number(usage.cached_tokens)} from the prefix cache"
    else:
        context = "none from the prefix cache"
    if usage.cache_write_tokens:
        context += f" · {number(usage.cache_write_tokens)} stored in it"
    unit = "token" if usage.prompt_tokens == 1 else "tokens"
    return Stat("Prompt", Quantity(number(usage.prompt_tokens), unit), context)


def _run(job: JobSummary, timeline: Timeline, now: datetime) -> Stat:
    """How long it took, and what made that longer or shorter."""
    total = quantity(((job.finished_at or now) - job.created_at).total_seconds())
    cache = job.decisions.cache
    lost = sum(attempt.outcome in _LOSSES for attempt in job.attempts)
    if cache is not None and cache.outcome == "HIT":
        age = f", {duration(cache.age_s)} old" if cache.age_s is not None else ""
        context = f"answered by the response cache{age}"
    elif job.follows is not None or (cache is not None and cache.outcome == "COALESCED"):
        context = "got the answer of an identical job"
    elif lost:
        gap = timeline.seconds(SpanKind.SILENT, now) + timeline.seconds(SpanKind.RESCUE, now)
        context = f"{plural(len(job.attempts), 'attempt')} · {duration(gap)} lost with a worker"
    elif job.attempts:
        context = plural(len(job.attempts), "attempt")
    else:
        context = "not claimed by a worker" if job.status.terminal else "waits for a worker"
    return Stat("Total" if job.status.terminal else "So far", total, context)


def _facts(job: JobSummary, names: KeyNames) -> list[Fact]:
    """Why this model, and for whom."""
    decisions, facts = job.decisions, [Fact("Requested", job.requested_model or job.model, code=True)]
    worker = job.attempts[-1].worker if job.attempts else None
    facts.append(Fact("Served by", job.model, code=True, more=f"on {worker}" if worker else ""))
    if (route := decisions.route) is not None:
        parts = [route.rule]
        if route.input_tokens is not None:
            parts.append(f"{'≈' if route.tokens_estimated else ''}{plural(route.input_tokens, 'token')}")
        if route.score is not None:
            parts.append(f"score {route.score:.2f}")
        if route.mode is not None:
            parts.append(f"for {route.mode}")
        facts.append(Fact("Rule", ", ".join(parts), more=f"of the route {route.route}"))
        if route.downgraded_from is not None:
            facts.append(Fact("Too expensive for a budget", route.downgraded_from, code=True))
        if route.tried:
            facts.append(Fact("Could not serve it", ", ".join(route.tried)))
        if route.fallbacks and not job.status.terminal:
            facts.append(Fact("Would take over", ", ".join(route.fallbacks)))
    facts += _cache_facts(job)
    if (context := decisions.context) is not None:
        parts = [context.strategy.replace("_", " ")]
        if context.dropped_messages:
            parts.append(f"{plural(context.dropped_messages, 'message')} dropped")
        if context.summarized_messages:
            parts.append(f"{plural(context.summarized_messages, 'message')} summarized")
        if context.cleared_tool_uses:
            parts.append(f"results of {plural(context.cleared_tool_uses, 'tool call')} cleared")
        if context.tokens_before is not None and context.tokens_after is not None:
            parts.append(f"{number(context.tokens_before)} → {number(context.tokens_after)} tokens")
        facts.append(Fact("Conversation", ", ".join(parts), link=context.summary_job, more=context.note or ""))
    if (limits := decisions.token_limits) is not None:
        requested = "none" if limits.requested_max_tokens is None else number(limits.requested_max_tokens)
        facts.append(Fact("max_tokens", f"{number(limits.max_tokens)}, requested: {requested}"))
    facts.append(Fact("Project", names.project, more=f"key {names.key} ({format_id(job.owner.key_id)})"))
    if job.owner.end_user is not None:
        facts.append(Fact("End user", job.owner.end_user))
    if job.kind is not None:
        facts.append(Fact("Purpose", job.kind.replace("_", " "), more="submitted by the server"))
    priority = f"{job.priority}{', of batches' if job.priority >= BATCH_PRIORITY else ''}"
    facts.append(Fact("Priority", priority))
    if (replayed := job.metadata.get("replay_of")) is not None:
        facts.append(Fact("Replay of", short_id(replayed), link=replayed))
    if job.request_context.request_id:
        facts.append(Fact("Request id", job.request_context.request_id, code=True))
    return facts


def _cache_facts(job: JobSummary) -> list[Fact]:
    cache = job.decisions.cache
    facts = []
    if cache is None:
        facts.append(Fact("Cache", "off for this request"))
    elif cache.outcome == "HIT":
        age = f", {duration(cache.age_s)} old" if cache.age_s is not None else ""
        facts.append(Fact("Cache", f"hit{age}", link=cache.source))
    elif cache.outcome == "COALESCED":
        facts.append(Fact("Coalesced with", short_id(cache.source or ""), link=cache.source))
    elif cache.outcome == "BYPASS":
        facts.append(Fact("Cache", "bypassed"))
    else:
        facts.append(Fact("Cache", "miss" + (f", stored for {duration(cache.ttl_s)}" if cache.ttl_s else "")))
    if job.continues:
        facts.append(Fact("Continues", short_id(job.continues), link=job.continues))
    return facts


def _entry(job: JobSummary, mark: Mark) -> HistoryEntry:
    after = milliseconds((mark.at - job.created_at).total_seconds() * 1000)
    worker = mark.worker or "a worker"
    label, kind, text = {
        MarkKind.SUBMITTED: ("submitted", "plain", f"with priority {job.priority}"),
        MarkKind.CLAIMED: ("claimed", "info", f"attempt {mark.attempt}: {worker} runs {mark.detail}"),
        MarkKind.FIRST_TOKEN: ("first token", "batch", "the answer begins"),
        MarkKind.LOST: ("lost", "bad", f"attempt {mark.attempt}: {_outcome(mark.detail)} ({worker})"),
        MarkKind.CONTINUED: ("continued", "good", f"attempt {mark.attempt}: {worker} runs {mark.detail}"),
        MarkKind.RESTARTED: ("restarted", "near", "what was generated before was discarded"),
        MarkKind.REROUTED: ("fallback", "route", f"{mark.detail} takes over from {worker}"),
        MarkKind.ENDED: (STATUSES[job.status][0].lower(), STATUSES[job.status][1], _end(job)),
    }[mark.kind]
    return HistoryEntry(mark.at, after, label, kind, text)


def _outcome(outcome: str | None) -> str:
    return next((text for known, text in _OUTCOMES.items() if known == outcome), outcome or "")


def _end(job: JobSummary) -> str:
    if job.error is not None:
        return f"{job.error.code}: {job.error.message}"
    return plural(job.usage.completion_tokens, "output token") if job.usage is not None else ""
