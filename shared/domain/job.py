"""A job: its value, its states and its attempts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from shared.domain.decisions import NO_DECISIONS, Decisions
from shared.domain.engine_info import EngineInfo
from shared.domain.errors import InvalidRequest
from shared.domain.ids import is_id, new_id
from shared.domain.log_level import DEFAULT_LOG_LEVEL, LogLevel
from shared.domain.opaque import OpaquePart, decode_all
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.domain.request_context import NO_CONTEXT, RequestContext


class JobStatus(StrEnum):
    """The states of a job. The last five are terminal: a job reaches exactly one of them, once."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def terminal(self) -> bool:
        return self in TERMINAL

    @property
    def succeeded(self) -> bool:
        """Whether the job ended with a complete answer, or with one that was cut by its token limit or its provider."""
        return self in SUCCEEDED


RUNNING = (JobStatus.IN_PROGRESS, JobStatus.CANCELLING)
SUCCEEDED = (JobStatus.COMPLETED, JobStatus.INCOMPLETE)
TERMINAL = (
    JobStatus.COMPLETED,
    JobStatus.INCOMPLETE,
    JobStatus.FAILED,
    JobStatus.CANCELLED,
    JobStatus.EXPIRED,
)


JOB_ID_PREFIX = "job_"


def new_job_id(region: str = "") -> str:
    """Return `job_`, a UUIDv7 in hex, and the region code if there is one."""
    return new_id(JOB_ID_PREFIX, region)


def is_job_id(text: str) -> bool:
    """Whether `text` has the form of a job id."""
    return is_id(JOB_ID_PREFIX, text)


def known_fields(cls: type[Any], stored: dict[str, Any]) -> dict[str, Any]:
    """The members of a stored value that a dataclass has. Newer versions may have added others."""
    return {field.name: stored[field.name] for field in fields(cls) if field.name in stored}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function call by the model; `arguments` is the JSON text that it generated."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One generated answer. `finish_reason`: "stop", "length", "tool_calls", "content_filter" (a filter of
    its provider ended it), or None if it was interrupted.

    `stop_reason` is the stop string or stop token that ended it. `logprobs` and `prompt_logprobs` have an entry per
    token, in the stored form (`shared.domain.logprobs`); only the first choice has `prompt_logprobs`.
    `opaque` has the parts of the provider that generated it, in order.
    `refused`: that provider says that the text is a refusal to answer.
    """

    index: int
    text: str
    finish_reason: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: Sequence[Any] | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: Sequence[Any] | None = None
    opaque: tuple[OpaquePart, ...] = ()
    refused: bool = False

    @property
    def size(self) -> int:
        """About the bytes of the choice as JSON, which indicate the time that it takes to process."""
        size = len(self.text) + len(self.reasoning or "") + sum(len(call.arguments) for call in self.tool_calls)
        size += sum(part.size for part in self.opaque)
        return size + _ENTRY_BYTES * (len(self.logprobs or ()) + len(self.prompt_logprobs or ()))

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Choice:
        """Build a choice from its stored form, which omits empty fields."""
        calls = tuple(ToolCall(**known_fields(ToolCall, call)) for call in stored.get("tool_calls", ()))
        opaque = decode_all(stored.get("opaque", ()))
        return cls(**{**known_fields(cls, stored), "tool_calls": calls, "opaque": opaque})

    def stored(self) -> dict[str, Any]:
        """Return the form that is stored in the job's row."""
        stored: dict[str, Any] = {"index": self.index, "text": self.text, "finish_reason": self.finish_reason}
        if self.tool_calls:
            stored["tool_calls"] = [asdict(call) for call in self.tool_calls]
        if self.opaque:
            stored["opaque"] = [part.encoded() for part in self.opaque]
        if self.refused:
            stored["refused"] = True
        for name in ("reasoning", "logprobs", "stop_reason", "prompt_logprobs"):
            if (value := getattr(self, name)) is not None:
                stored[name] = value
        return stored


# The members of a choice, and a small entry of log probabilities.
_CHOICE_BYTES = 256
_ENTRY_BYTES = 64


def output_size(output: Sequence[Choice]) -> int:
    """About the bytes of an output as JSON."""
    return sum(choice.size for choice in output) + _CHOICE_BYTES * len(output)


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts: of the prompt, of its part that was in the prefix cache, and of all choices together.

    `reasoning_tokens` are part of the completion, and `cache_write_tokens`, which the upstream has stored in its cache,
    of the prompt; `cache_write_1h_tokens` is the part of these that it keeps for an hour. They are 0 unless an upstream
    reports them. `service_tier`: the tier in which the upstream has served the request, if it is not the default one;
    not stored.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    service_tier: str | None = None

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Usage:
        """Build the usage from its stored form."""
        return cls(**known_fields(cls, stored))

    def stored(self) -> dict[str, int]:
        """Return the form that is stored in the job's row and log. The last three counts are omitted if they are 0."""
        return {name: count for name, count in self._counts().items() if count or name not in _REPORTED_COUNTS}

    def without(self, counts: Mapping[str, int]) -> Usage:
        """Return the usage less these counts."""
        left: dict[str, Any] = {name: max(0, count - counts.get(name, 0)) for name, count in self._counts().items()}
        return replace(self, **left)

    def _counts(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in _COUNTS}


_COUNTS = tuple(one.name for one in fields(Usage) if one.name != "service_tier")
_REPORTED_COUNTS = ("reasoning_tokens", "cache_write_tokens", "cache_write_1h_tokens")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job failed: an error code (`shared.domain.errors.ErrorCode`) and a message.

    `param` is the parameter that an `invalid_request` is about, by its name in a job.
    """

    code: str
    message: str
    param: str | None = None

    @classmethod
    def of(cls, payload: dict[str, str]) -> Failure:
        """Decode the `error` of a log's last event. Other members, which a newer version may write, are ignored."""
        return cls(payload["code"], payload["message"], payload.get("param"))

    def renamed(self, names: Mapping[str, str]) -> Failure:
        """Return the failure with a job's parameter replaced by that of an API: see `InvalidRequest.renamed`."""
        error = InvalidRequest(self.message, param=self.param).renamed(names)
        return replace(self, message=error.message, param=error.param)

    def payload(self) -> dict[str, str]:
        """Encode the `error` of a log's last event."""
        param = {} if self.param is None else {"param": self.param}
        return {"code": str(self.code), "message": self.message, **param}


class AttemptOutcome(StrEnum):
    """How an attempt ended: the first four with the job, the others with the job back in the queue.

    Stored in the row's history and shown by the API; a job whose last worker was lost for good has `worker_lost` too.
    """

    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    CANCELLED = "cancelled"
    # The worker was drained.
    HANDED_BACK = "handed_back"
    # A batch job made room for an urgent one.
    SET_ASIDE = "set_aside"
    # The engine died.
    ENGINE_LOST = "engine_lost"
    # The worker's lease expired.
    WORKER_LOST = "worker_lost"
    # The upstream was busy. Without output, it is not in the history: the job waits as if it had not been claimed.
    DEFERRED = "deferred"
    # The model could not serve the job, and another one takes over.
    REROUTED = "rerouted"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One worker's attempt to run a job.

    `outcome` is an `AttemptOutcome`, or None while the attempt runs; a string, since a newer version may write others.
    `fingerprint` identifies how the model was run; it is known once the job has ended, if its worker reported it.
    `model` is None for attempts that an earlier version has recorded. `error`: why the model could not serve the job,
    if another one took over (`shared.domain.fallback.FallbackReason`).
    """

    number: int
    worker: str
    started_at: datetime
    ended_at: datetime | None = None
    tokens: int = 0
    outcome: str | None = None
    fingerprint: str | None = None
    model: str | None = None
    error: str | None = None


class WorkerState(StrEnum):
    """The state of a worker; only a `ready` one counts for readiness."""

    # Its engine is starting for the first time.
    LOADING = "loading"
    READY = "ready"
    # Its engine runs and fills its prompt cache; it takes no jobs yet.
    WARMING = "warming"
    RESTARTING = "restarting"
    DRAINING = "draining"
    # It has finished its jobs, because an operator has drained it, and has ended.
    DRAINED = "drained"


@dataclass(frozen=True, slots=True)
class OpenBreaker:
    """Since when a worker's circuit breaker lets no jobs through to the upstream, and why, in a few words."""

    since: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What a worker reports about itself with each heartbeat, for operators.

    `options`: how its model is run. `waiting`: requests that the engine has accepted but not started. `kv_cache_usage`:
    the fraction in use, from 0 to 1. `tokens_per_s`: output tokens since the report before. `last_error`: why its
    engine failed last. `engine_info`: what its engine runs with. None if unknown.
    """

    version: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    waiting: int = 0
    kv_cache_usage: float | None = None
    tokens_per_s: float | None = None
    last_error: str | None = None
    engine_info: EngineInfo | None = None


NO_REPORT = WorkerReport()


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSummary:
    """A job without its request and its output, as lists, polls and recovery need it. Times are in UTC.

    They can therefore handle jobs whose request this version cannot read.
    """

    id: str
    owner: Owner
    model: str
    status: JobStatus
    priority: int
    created_at: datetime
    metadata: dict[str, str] = field(default_factory=dict)
    start_before: datetime | None = None
    finish_before: datetime | None = None
    # While it is queued: when it can be claimed again. Since when the upstream has been too busy for it.
    not_before: datetime | None = None
    deferred_since: datetime | None = None
    attempt: int = 0
    deaths: int = 0
    suspect: bool = False
    exposures: int = 0
    worker: str | None = None
    started_at: datetime | None = None
    first_token_at: datetime | None = None
    finished_at: datetime | None = None
    usage: Usage | None = None
    error: Failure | None = None
    attempts: tuple[Attempt, ...] = ()
    request_context: RequestContext = NO_CONTEXT
    # The number of choices that the request asks for.
    choices: int = 1
    # The model or route that the client named, if another model serves the job.
    requested_model: str | None = None
    # What the job is for, if it is not a client's request: `summary`.
    kind: str | None = None
    decisions: Decisions = NO_DECISIONS
    # How much of it the request log keeps.
    log_level: LogLevel = DEFAULT_LOG_LEVEL
    # The job whose answer this one waits for.
    follows: str | None = None
    # The job that this one followed until that ended without an answer. Its log is the beginning of this job's log;
    # if it is empty, that log is not.
    continues: str | None = None
    # What the project is charged for the job, in dollars. None if a part has no price, if the job has not ended, and
    # where it was not read.
    charge: Decimal | None = None

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint of the attempt that ended the job, or of the one whose answer the job has."""
        if self.attempts:
            return self.attempts[-1].fingerprint
        return self.decisions.cache.fingerprint if self.decisions.cache is not None else None

    @property
    def may_lead(self) -> bool:
        """Whether other jobs may follow it: it was admitted with a key of the response cache."""
        return self.follows is None and self.decisions.cache is not None and self.decisions.cache.ttl_s is not None

    @property
    def begins_with(self) -> str | None:
        """The job whose log is the beginning of this job's log, which it has followed."""
        return self.follows or self.continues

    def charged(self, usage: Usage) -> Usage:
        """The part of the job's usage that was generated for this job, and not for one that it followed."""
        if self.follows is not None:
            return Usage()
        cache = self.decisions.cache
        return usage if cache is None or cache.inherited is None else usage.without(cache.inherited)

    @property
    def missed_start(self) -> bool:
        """Whether an overdue job missed its start deadline rather than its finish deadline."""
        if self.started_at is not None or self.start_before is None:
            return False
        return self.finish_before is None or self.start_before <= self.finish_before

    def timings(self) -> dict[str, Any]:
        """Milliseconds from submission to the start, the first token and the end; None if not reached."""

        def since_submit(moment: datetime | None) -> int | None:
            return None if moment is None else round((moment - self.created_at).total_seconds() * 1000)

        return {
            "queued_ms": since_submit(self.started_at),
            "ttft_ms": since_submit(self.first_token_at),
            "total_ms": since_submit(self.finished_at),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(JobSummary):
    """A job, as stored in its row. `log_start`: the first page of its log, if it was created with a cached answer that
    the client wants as a stream."""

    request: GenerateRequest
    output: tuple[Choice, ...] = ()
    log_start: str | None = None

    @property
    def output_size(self) -> int:
        """About the bytes of the output as JSON."""
        return output_size(self.output)
