"""Writes summaries of what was dropped from conversations, as jobs, and keeps them.

A summary is stored by the digest of the messages that it replaces, so a conversation that goes on finds it again. When
more is dropped, the stored summary is extended: it is summarized together with what has been dropped since. What is too
long for the model that writes summaries is summarized in several stages, each of which extends the one before.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from api.context.summary_store import StoredSummary, SummaryStore
from api.context.transcript import VERSION, shortened_text, task, transcript
from api.context.window import ContextWindow
from api.keys.principal import Principal
from shared.config.models.loader import Registry
from shared.domain.answer_options import NO_KEY_OPTIONS
from shared.domain.decisions import ContextDecision, Decisions
from shared.domain.errors import HeadraceError
from shared.domain.job import Job
from shared.domain.request import GenerateRequest, Message, Sampling
from shared.postgres.job_store import NewJob
from shared.runtime.offload import off_loop
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

KIND = "summary"
# The most stages of which a stored summary is looked up: the newest.
LOOKED_UP = 64
# Bytes of a conversation per token of the context of the model that summarizes it: fewer than text usually has.
BYTES_PER_TOKEN = 3
# Assumed if the context length of that model is unknown.
UNKNOWN_CONTEXT = 16_384
# What the request for a summary has beside the conversation, in tokens.
TASK_TOKENS = 256
# The least room for the conversation with which a model can summarize, in bytes.
MIN_STAGE_BYTES = 300
# A job that writes a summary is cancelled after this many times the time that a request waits for it.
MAX_WAITS = 4
# After a model has failed or was too slow, a project's requests do without new summaries for so long: each of them
# would wait for the model again.
PAUSE_S = 60.0


class NoSummary(Exception):
    """There is no summary; the text says why."""


class SummaryJobs(Protocol):
    """Runs the jobs that write summaries: `api.jobs.service.JobService`."""

    async def submit(self, principal: Principal, new: NewJob) -> tuple[Job, bool]:
        """Submit a job."""

    async def ended(self, job: Job) -> Job:
        """Wait for a job to end, and return it with its output."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to summarize: the messages that each cut dropped, for a new job, in at most about `tokens` tokens."""

    new: NewJob
    model: str
    rounds: Sequence[Sequence[Message]]
    tokens: int


@dataclass(frozen=True, slots=True)
class _Stage:
    """A piece of the conversation, the digest of everything up to its end, and the number of messages up to there."""

    sha256: bytes
    text: str
    messages: int


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
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        # By project and model, until when none is requested, by the monotonic clock, and why.
        self._paused: dict[tuple[int, str], tuple[float, str]] = {}
        # The summaries that are being written, by project, model and digest.
        self._writing: dict[tuple[int, str, bytes], asyncio.Task[StoredSummary]] = {}

    async def close(self) -> None:
        """Stop waiting for the jobs. They end on their own."""
        tasks = list(self._writing.values())
        for writing in tasks:
            writing.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def summary(self, jobs: SummaryJobs, principal: Principal, order: Order) -> StoredSummary:
        """Return the summary of what was dropped from a conversation, which may have to be written first.

        If that takes too long, it goes on, so that a later request finds the summary.

        Raises:
            NoSummary: the model cannot write it, failed, or takes too long.
        """
        if order.model not in self._registry:
            raise NoSummary(f"the model `{order.model}` does not exist")
        stages = await off_loop(order.new.request.size, _stages, order, self._stage_bytes(order))
        key = (order.new.owner.project_id, order.model, stages[-1].sha256)
        writing = self._writing.get(key)
        known: dict[bytes, StoredSummary] = {}
        if writing is None:
            known = await self._find(order, stages)
            if stages[-1].sha256 in known:
                return known[stages[-1].sha256]
            writing = self._writing.get(key)
        self._check_pause(key[:2])
        writing = writing or self._start(key, self._write(jobs, principal, order, stages, known))
        try:
            async with asyncio.timeout(self._timeout_s):
                summary = await asyncio.shield(writing)
        except TimeoutError:
            reason = f"the summary was not written within {self._timeout_s:g} s"
            raise self._pause(key[:2], NoSummary(reason)) from None
        except NoSummary as error:
            raise self._pause(key[:2], error) from None
        except (SQLAlchemyError, RedisError, OSError) as error:
            raise NoSummary(f"the summary's job cannot be run: {type(error).__name__}") from error
        return summary

    def _check_pause(self, asked: tuple[int, str]) -> None:
        """Raise `NoSummary` if a summary for the project by the model has failed, or was too slow, a moment ago."""
        until, reason = self._paused.get(asked, (0.0, ""))
        if time.monotonic() < until:
            raise NoSummary(f"there was none for an earlier request either: {reason}")
        self._paused.pop(asked, None)

    def _pause(self, asked: tuple[int, str], error: NoSummary) -> NoSummary:
        self._paused[asked] = (time.monotonic() + self._pause_s, str(error))
        return error

    def _start(
        self, key: tuple[int, str, bytes], writing: Coroutine[Any, Any, StoredSummary]
    ) -> asyncio.Task[StoredSummary]:
        started = self._writing[key] = asyncio.create_task(writing)

        def ended(done: asyncio.Task[StoredSummary]) -> None:
            self._writing.pop(key, None)
            if not done.cancelled() and (error := done.exception()) is not None:
                logger.warning("no summary by the model %s: %s", key[1], error)

        started.add_done_callback(ended)
        return started

    async def _find(self, order: Order, stages: Sequence[_Stage]) -> dict[bytes, StoredSummary]:
        digests = [stage.sha256 for stage in stages[-LOOKED_UP:]]
        try:
            return await self._store.find(order.new.owner.project_id, order.model, digests)
        except (SQLAlchemyError, OSError) as error:
            raise NoSummary(f"the stored summaries cannot be read: {type(error).__name__}") from error

    async def _write(
        self,
        jobs: SummaryJobs,
        principal: Principal,
        order: Order,
        stages: Sequence[_Stage],
        known: dict[bytes, StoredSummary],
    ) -> StoredSummary:
        """Write the summary, from the newest one that exists."""
        began = time.monotonic()
        done = next((number for number in reversed(range(len(stages))) if stages[number].sha256 in known), None)
        earlier = known[stages[done].sha256] if done is not None else None
        for stage in stages[0 if done is None else done + 1 :]:
            if time.monotonic() - began > MAX_WAITS * self._timeout_s:
                raise NoSummary("the conversation takes too long to summarize")
            earlier = await self._extend(jobs, principal, order, stage, earlier)
        assert earlier is not None
        self._paused.pop((order.new.owner.project_id, order.model), None)
        self._metrics.summary_time.labels(self._metrics.model_label(order.model)).observe(time.monotonic() - began)
        return earlier

    async def _extend(
        self, jobs: SummaryJobs, principal: Principal, order: Order, stage: _Stage, earlier: StoredSummary | None
    ) -> StoredSummary:
        """Run the job that summarizes a stage and the earlier summary, and store its summary."""
        text = task(stage.text, earlier.text if earlier is not None else None, order.tokens)
        extended = None if earlier is None else ContextDecision(strategy="summarize", summary_job=earlier.job_id)
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
            decisions=Decisions(context=extended),
        )
        try:
            job, _ = await jobs.submit(replace(principal, options=NO_KEY_OPTIONS), new)
            job = await jobs.ended(job)
        except HeadraceError as error:
            raise NoSummary(f"the summary's job was rejected: {error}") from error
        if not job.status.succeeded:
            reason = job.error.message if job.error is not None else job.status.value
            raise NoSummary(f"the summary's job {job.id} failed: {reason}")
        written = job.output[0].text.replace("\x00", "").strip() if job.output else ""
        if not written:
            raise NoSummary(f"the summary's job {job.id} wrote nothing")
        summary = StoredSummary(stage.sha256, written, job.id)
        await self._store.put(order.new.owner.project_id, order.model, summary, messages=stage.messages)
        return summary

    def _stage_bytes(self, order: Order) -> int:
        """The most bytes of a conversation that the model can summarize at once.

        Raises:
            NoSummary: its context is too small.
        """
        context = self._window.length(order.model) or UNKNOWN_CONTEXT
        size = BYTES_PER_TOKEN * (context - TASK_TOKENS - 3 * order.tokens)  # the earlier summary, and twice the output
        if size < MIN_STAGE_BYTES:
            raise NoSummary(f"the context of `{order.model}`, {context} tokens, is too small to write summaries")
        return size


def _stages(order: Order, size: int) -> list[_Stage]:
    """The pieces of a conversation, of at most about `size` bytes, one or more for each cut.

    They depend only on what came before, so a longer conversation begins with the same ones.
    """
    digest = hashlib.sha256(f"{VERSION} {order.tokens} {size}".encode())
    stages: list[_Stage] = []
    count = 0
    for messages in order.rounds:
        texts: list[str] = []
        room = size
        for message in messages:
            text = shortened_text(transcript(message), size)
            encoded = text.encode("utf-8", "surrogatepass")
            if texts and len(encoded) >= room:
                stages.append(_Stage(digest.digest(), "\n".join(texts), count))
                texts, room = [], size
            texts.append(text)
            room -= len(encoded) + 1
            count += 1
            digest.update(f"{len(encoded)} ".encode())
            digest.update(encoded)
        if texts:
            stages.append(_Stage(digest.digest(), "\n".join(texts), count))
    return stages
