"""Writes summaries of what was dropped from conversations, as jobs, and keeps them.

A summary is stored by the digest of the messages that it replaces, so a conversation that goes on finds it again. When
more is dropped, the newest stored summary is extended: it is summarized together with what has been dropped since. What
is too long for the model that writes summaries is summarized in several stages, each of which extends the one before.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol
from uuid import uuid4

from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from api.context.limits import TokenLimiter
from api.context.pauses import Conversation, Pauses
from api.context.summary_store import StoredSummary, SummaryStore
from api.context.transcript import VERSION, Entry, entries, shortened_entries, task
from api.context.window import ContextWindow
from api.keys.principal import Principal
from shared.config.models.loader import Registry
from shared.domain.answer_options import NO_KEY_OPTIONS
from shared.domain.decisions import ContextDecision, Decisions
from shared.domain.errors import ErrorCode, HeadraceError
from shared.domain.job import Job
from shared.domain.new_job import NewJob
from shared.domain.request import GenerateRequest, Message, Sampling
from shared.runtime.offload import off_loop
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

KIND = "summary"
# Stored summaries are looked up at the end of each of the newest messages, and at the ends of stages.
LOOKED_UP = 256
# The most stages that one request lets a model write. The next request of the conversation continues.
MAX_STAGES = 16
# What needs more stages is not summarized.
MOST_STAGES = 256
# Bytes of a conversation per token of the context of the model that summarizes it: fewer than text usually has.
BYTES_PER_TOKEN = 3
# Assumed if the context length of that model is unknown.
UNKNOWN_CONTEXT = 16_384
# What the request for a summary has beside the conversation, in tokens.
TASK_TOKENS = 256
# The least room for the conversation with which a model can summarize, in bytes.
MIN_STAGE_BYTES = 300
# The fewest tokens with which a summary is worth writing.
MIN_TOKENS = 16
# A job that writes a summary is cancelled after this many times the time that a request waits for it.
MAX_WAITS = 4
# After a failure, a conversation's requests do without new summaries for so long: each would wait for the model again.
PAUSE_S = 60.0
# Failures that are not due to the conversation.
_MODEL_FAILURES = frozenset(
    {ErrorCode.ENGINE_ERROR, ErrorCode.UPSTREAM_ERROR, ErrorCode.WORKER_LOST, ErrorCode.DEADLINE_EXCEEDED}
)


class NoSummary(Exception):
    """There is no summary; the text says why. `conversation` identifies the summaries of the conversation, if any."""

    def __init__(self, reason: str, conversation: str | None = None) -> None:
        super().__init__(reason)
        self.conversation = conversation


class _Unfinished(NoSummary):
    """A later request continues the summary."""


class _ModelFailed(NoSummary):
    """The model has failed, which may concern other conversations too."""


class SummaryJobs(Protocol):
    """Runs the jobs that write summaries: `api.jobs.service.JobService`."""

    async def submit(self, principal: Principal, new: NewJob) -> tuple[Job, bool]:
        """Submit a job."""

    async def ended(self, job: Job) -> Job:
        """Wait for a job to end, and return it with its output."""

    async def is_queue_paused(self, model: str) -> bool:
        """Whether an operator has paused the queue of a model, so that its jobs wait."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to summarize for a new job: dropped messages, in the order in which they were dropped.

    `tokens`: the summary's length, at most about.
    """

    new: NewJob
    model: str
    messages: Sequence[Message]
    tokens: int


@dataclass(frozen=True, slots=True)
class _Text:
    """A message as text, its bytes, and the digest of everything up to its end."""

    entries: Sequence[Entry]
    size: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class _Stage:
    """The messages from one to before another that a job summarizes."""

    texts: Sequence[_Text]
    messages: int

    @property
    def sha256(self) -> bytes:
        return self.texts[-1].sha256


@dataclass(frozen=True, slots=True)
class _Writing:
    """A summary that is being written. `conversation`: as in `StoredSummary`."""

    task: asyncio.Task[StoredSummary]
    conversation: str


class Summaries:
    """The summaries of conversations."""

    def __init__(
        self,
        store: SummaryStore,
        registry: Registry,
        window: ContextWindow,
        metrics: Metrics,
        *,
        timeout_s: float,
        pause_s: float = PAUSE_S,
    ) -> None:
        """`timeout_s`: how long a request waits for a summary. `pause_s`: after a failure, none is requested."""
        self._store = store
        self._registry = registry
        self._window = window
        self._limits = TokenLimiter(registry, window)
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._pauses = Pauses(pause_s)
        # By project, model and digest.
        self._writing: dict[tuple[int, str, bytes], _Writing] = {}

    async def close(self) -> None:
        """Stop waiting for the jobs. They end on their own."""
        tasks = [writing.task for writing in self._writing.values()]
        for writing in tasks:
            writing.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def summary(self, jobs: SummaryJobs, principal: Principal, order: Order) -> StoredSummary:
        """Return the summary of what was dropped from a conversation, which may have to be written first.

        If that takes too long, it goes on, so that a later request finds the summary.

        Raises:
            NoSummary: the model cannot write it, failed, takes too long, or is paused.
        """
        if order.model not in self._registry:
            raise NoSummary(f"the model `{order.model}` does not exist")
        order = self._limited(principal, order)
        size = self._stage_bytes(principal, order)
        texts = await off_loop(order.new.request.size, _texts, order.messages, size)
        key = (principal.project_id, order.model, texts[-1].sha256)
        if (writing := self._writing.get(key)) is None:
            known = await self._find(principal, order, texts, size)
            if known and texts[-1].sha256 == known.sha256:
                return known
            if await jobs.is_queue_paused(order.model):  # the request would only wait for its timeout
                conversation = known.conversation if known is not None else None
                raise NoSummary(f"the queue of the model `{order.model}` is paused", conversation)
            writing = self._writing.get(key) or self._start(key, jobs, principal, order, texts, size, known)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.shield(writing.task)
        except TimeoutError:
            reason = f"the summary was not written within {self._timeout_s:g} s"
            self._pauses.start(_conversation(principal, order, texts), reason)
            raise NoSummary(reason, writing.conversation) from None
        except NoSummary as error:
            raise NoSummary(str(error), writing.conversation) from None
        except (SQLAlchemyError, RedisError, OSError) as error:
            reason = f"the summary's job cannot be run: {type(error).__name__}"
            raise NoSummary(reason, writing.conversation) from error

    def _start(
        self,
        key: tuple[int, str, bytes],
        jobs: SummaryJobs,
        principal: Principal,
        order: Order,
        texts: Sequence[_Text],
        size: int,
        known: StoredSummary | None,
    ) -> _Writing:
        """Begin to write a summary.

        Raises:
            NoSummary: the conversation or the model is paused, or the conversation is too long for the model.
        """
        conversation = known.conversation if known is not None else uuid4().hex
        if (reason := self._pauses.reason(_conversation(principal, order, texts))) is not None:
            message = f"an earlier request got none either: {reason}"
            raise NoSummary(message, known.conversation if known is not None else None)
        done = 0
        if known is not None:
            # It may have been written for a request with more room.
            room = size - max(0, len(known.text.encode()) - BYTES_PER_TOKEN * order.tokens)
            if room < MIN_STAGE_BYTES:
                known = None
            else:
                size, done = room, next(n for n, text in enumerate(texts, 1) if text.sha256 == known.sha256)
        stages = _stages(texts, done, size)
        if len(stages) > MOST_STAGES:
            raise NoSummary(f"the conversation is too long for the context of `{order.model}`")
        writing = self._write(jobs, principal, order, stages, known, conversation)
        started = asyncio.create_task(writing)
        self._writing[key] = _Writing(started, conversation)
        paused = _conversation(principal, order, texts)

        def ended(finished: asyncio.Task[StoredSummary]) -> None:
            self._writing.pop(key, None)
            if finished.cancelled():
                return
            if (error := finished.exception()) is None:
                self._pauses.end(paused)
                return
            logger.warning("model=%s has written no summary: %s", order.model, error)
            if isinstance(error, NoSummary) and not isinstance(error, _Unfinished):
                self._pauses.start(paused, str(error), of_model=isinstance(error, _ModelFailed))

        started.add_done_callback(ended)
        return self._writing[key]

    async def _find(
        self, principal: Principal, order: Order, texts: Sequence[_Text], size: int
    ) -> StoredSummary | None:
        """The stored summary of the largest part of a conversation."""
        stages = [stage.sha256 for stage in _stages(texts, 0, size)[:MOST_STAGES]]
        digests = dict.fromkeys([*(text.sha256 for text in texts[-LOOKED_UP:]), *stages])
        try:
            found = await self._store.find(principal.project_id, order.model, list(digests))
        except (SQLAlchemyError, OSError) as error:
            raise NoSummary(f"the stored summaries cannot be read: {type(error).__name__}") from error
        return next((found[text.sha256] for text in reversed(texts) if text.sha256 in found), None)

    async def _write(
        self,
        jobs: SummaryJobs,
        principal: Principal,
        order: Order,
        stages: Sequence[_Stage],
        known: StoredSummary | None,
        conversation: str,
    ) -> StoredSummary:
        """Write the summary, from the newest one that exists."""
        began = time.monotonic()
        earlier = known
        for number, stage in enumerate(stages):
            if number == MAX_STAGES:
                left = len(stages) - number
                raise _Unfinished(f"the conversation is long; later requests continue its summary ({left} more jobs)")
            if time.monotonic() - began > MAX_WAITS * self._timeout_s:
                raise NoSummary("the conversation takes too long to summarize")
            earlier = await self._extend(jobs, principal, order, stage, earlier, conversation)
        assert earlier is not None
        self._metrics.summary_time.labels(self._metrics.model_label(order.model)).observe(time.monotonic() - began)
        return earlier

    async def _extend(
        self,
        jobs: SummaryJobs,
        principal: Principal,
        order: Order,
        stage: _Stage,
        earlier: StoredSummary | None,
        conversation: str,
    ) -> StoredSummary:
        """Run the job that summarizes a stage and the earlier summary, and store its summary."""
        conversation_entries = [entry for text in stage.texts for entry in text.entries]
        text = task(conversation_entries, earlier.text if earlier is not None else None, order.tokens)
        decision = ContextDecision(
            strategy="summarize",
            summary_job=earlier.job_id if earlier is not None else None,
            conversation=conversation,
        )
        new = NewJob(
            owner=order.new.owner,
            model=order.model,
            priority=order.new.priority,
            request=GenerateRequest(
                messages=[Message(role="user", content=text)],
                sampling=Sampling(max_tokens=2 * order.tokens),
                priority=order.new.priority,
            ),
            finish_within_s=MAX_WAITS * self._timeout_s,
            kind=KIND,
            log_level=order.new.log_level,
            decisions=Decisions(context=decision),
        )
        try:
            await self._limits.check_input(principal, replace(new, kind=None), counted=False)
            job, _ = await jobs.submit(replace(principal, options=NO_KEY_OPTIONS), new)
            job = await jobs.ended(job)
        except HeadraceError as error:
            raise NoSummary(f"the summary's job was rejected: {error}") from error
        try:
            written = _written(job)
        except NoSummary:
            await self._store.discard(job.id, extends=earlier)
            raise
        summary = StoredSummary(stage.sha256, written, job.id, conversation)
        stored = await self._store.put(
            principal.project_id, order.model, summary, messages=stage.messages, extends=earlier
        )
        if stored is None:
            raise NoSummary("the conversation was deleted")
        return stored

    def _limited(self, principal: Principal, order: Order) -> Order:
        """The order within the limits of tokens of the key and of the model that writes the summary.

        Raises:
            NoSummary: they leave too little.
        """
        most = self._limits.max_output(principal, order.model)
        if most is None or most >= 2 * order.tokens:
            return order
        if most < 2 * MIN_TOKENS:
            raise NoSummary(f"a limit of {most} output tokens applies to `{order.model}`, too few for a summary")
        return replace(order, tokens=most // 2)

    def _stage_bytes(self, principal: Principal, order: Order) -> int:
        """The most bytes of a conversation that the model can summarize at once.

        Raises:
            NoSummary: its context, or the prompt that the key or the model allows, is too small.
        """
        context = self._window.length(order.model) or UNKNOWN_CONTEXT
        room, what = context - 2 * order.tokens, f"the context of `{order.model}`, {context} tokens,"
        if (limit := self._limits.max_input(principal, order.model)) is not None and limit < room:
            room, what = limit, f"the limit of the prompt, {limit} tokens,"
        per_token = float(BYTES_PER_TOKEN)
        if not self._window.has_counter(order.model):
            ratio = self._window.estimates.tokens_per_byte(order.model, principal.project_id)
            per_token = min(per_token, 1 / ratio)
        size = int(per_token * (room - TASK_TOKENS - order.tokens))  # beside the earlier summary
        if size < MIN_STAGE_BYTES:
            raise NoSummary(f"{what} is too small to write summaries")
        return size


def _written(job: Job) -> str:
    """The summary that a job has written; raises `NoSummary` if it has written none."""
    if not job.status.succeeded:
        reason = f"the summary's job {job.id} failed: {job.error.message if job.error else job.status.value}"
        raise _ModelFailed(reason) if job.error and job.error.code in _MODEL_FAILURES else NoSummary(reason)
    written = job.output[0].text.replace("\x00", "").strip() if job.output else ""
    if not written:
        raise NoSummary(f"the summary's job {job.id} returned no text")
    return written


def _conversation(principal: Principal, order: Order, texts: Sequence[_Text]) -> Conversation:
    return Conversation(principal.project_id, order.model, texts[0].sha256)


def _texts(messages: Sequence[Message], size: int) -> list[_Text]:
    """Messages as texts of at most about `size` bytes. The digests are those of the whole messages."""
    digest = hashlib.sha256(VERSION.encode())
    texts = []
    for message in messages:
        whole = entries(message)
        for entry in whole:
            text = entry.text.encode("utf-8", "surrogatepass")
            digest.update(f"{entry.label} {len(text)} ".encode())
            digest.update(text)
        digest.update(b".")
        shortened = shortened_entries(whole, size)
        texts.append(_Text(shortened, sum(entry.size for entry in shortened), digest.digest()))
    return texts


def _stages(texts: Sequence[_Text], done: int, size: int) -> list[_Stage]:
    """The messages after the first `done`, in as few stages as possible, of at most about `size` bytes."""
    ends, room = [done], size
    for number, text in enumerate(texts[done:], done):
        if number > ends[-1] and text.size > room:
            ends.append(number)
            room = size
        room -= text.size
    return [_Stage(texts[first:end], end) for first, end in pairwise([*ends, len(texts)]) if first < end]
