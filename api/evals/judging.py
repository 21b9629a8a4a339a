"""Judge jobs: submits them, and writes down what they say.

A judgement is a row before it is a job, so that nothing is judged twice: its job is submitted with an idempotency key
made of the row's id, by whichever process takes the row, and its end is found by looking at the job from time to time.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from pydantic import ValidationError

from api.evals.identity import JudgeIdentity
from api.evals.judgements import Due, JudgeJob, Judgement, JudgementStore
from api.evals.prompts import BYTES_PER_TOKEN, Judged, judge_request, read_verdict
from api.evals.rubrics import Rubric, RubricBook
from api.evals.runs import RunStore
from api.evals.samples import SampleStore
from api.keys.principal import Principal
from api.keys.store import ApiKeyStore
from api.request_log.bodies import Bodies, Body, Missing, MissingReason
from shared.config.models.loader import Registry
from shared.domain.errors import (
    BudgetExceeded,
    ContextExceeded,
    HeadraceError,
    NotFound,
    QuotaExceeded,
    Unavailable,
)
from shared.domain.job import Choice, Job
from shared.domain.judgements import JudgementState, RunKind
from shared.domain.log_level import LogLevel
from shared.domain.new_job import Idempotency, NewJob
from shared.domain.priorities import BATCH_PRIORITY
from shared.domain.request import Message
from shared.runtime.offload import off_loop
from shared.runtime.periodic import run_periodically
from shared.telemetry.definitions.labels import SamplingSkip
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

KIND = "judge"
STEP_S, ABANDONED_STEP_S = 2.0, 600.0
# Judgements whose jobs a step submits, and those whose jobs are looked at in one go.
SUBMITTED, LOOKED_AT = 50, 200
# A judge job that has not ended by then is cancelled: what is judged should not be a day old.
FINISH_WITHIN_S = 6 * 3600.0
# After a refusal by a budget or a quota, sampling stops for so long, or until the budget's next window if it is sooner.
PAUSE_S, MIN_PAUSE_S = 300.0, 30.0
# A judgement of a set whose texts a client has not brought again by then has failed.
MAX_UNSENT = timedelta(hours=1)


class JudgeJobs(Protocol):
    """Submits and cancels jobs: `api.jobs.service.JobService`."""

    async def submit(
        self, principal: Principal, new: NewJob, idempotency: Idempotency | None = None
    ) -> tuple[Job, bool]:
        """Submit a job."""

    async def cancel(self, job_id: str, project_id: int) -> object:
        """Cancel a job of a project."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What is to be judged cannot be read, and why."""

    reason: str


class Judges:
    """Submits the jobs of judges, and collects their results."""

    def __init__(
        self,
        book: RubricBook,
        runs: RunStore,
        judgements: JudgementStore,
        samples: SampleStore,
        identity: JudgeIdentity,
        keys: ApiKeyStore,
        jobs: JudgeJobs,
        bodies: Bodies,
        registry: Registry,
        metrics: Metrics,
    ) -> None:
        self._book = book
        self._runs = runs
        self._judgements = judgements
        self._samples = samples
        self._identity = identity
        self._keys = keys
        self._jobs = jobs
        self._bodies = bodies
        self._registry = registry
        self._metrics = metrics

    async def run(self) -> None:
        """Submit and collect every few seconds, until cancelled."""
        await run_periodically(self.step, "judgements", interval_s=STEP_S, jitter=0.2)

    async def run_ending_abandoned(self) -> None:
        """End runs over sets whose clients have stopped bringing items, from time to time, until cancelled."""
        await run_periodically(self.end_abandoned, "ending abandoned runs", interval_s=ABANDONED_STEP_S, jitter=0.2)

    async def end_abandoned(self) -> None:
        """End runs over sets whose clients have stopped bringing items."""
        if ended := await self._runs.end_abandoned():
            logger.warning("%d runs over sets were ended: their items have stopped coming", ended)

    async def step(self) -> None:
        """Take the judgements whose turn it is: submit the jobs of new ones, and look at the jobs of others."""
        if self._book.rubrics:
            await self._identity.principal(self._keys)  # it exists before it spends, so that it can get a budget
        # All that are due, before anything is submitted: the answers of judges are deleted a minute after their end,
        # and a run over a set may have thousands of them.
        while running := await self._judgements.take_due(LOOKED_AT, submitted=True):
            await self._collect(running)
            if len(running) < LOOKED_AT:
                break
        if new := await self._judgements.take_due(SUBMITTED, submitted=False):
            await self._submit_sampled(new)

    async def submit_of_set(self, run_id: str, rubric: Rubric, judgement: Judgement, judged: Judged) -> None:
        """As `submit`. A judgement whose texts the judge's context cannot take fails by itself, because the others of
        its run can be made."""
        try:
            await self.submit(run_id, rubric, judgement, judged)
        except ContextExceeded as error:
            if await self._judgements.end(judgement.id, JudgementState.FAILED, reason=error.message):
                self._metrics.judgements.labels(JudgementState.FAILED.value).inc()

    async def submit(self, run_id: str, rubric: Rubric, judgement: Judgement, judged: Judged) -> None:
        """Submit the job of a judgement that the caller has leased.

        Raises:
            BudgetExceeded, QuotaExceeded: nothing was submitted; it may be tried again.
            InvalidRequest, NotFound: the judge cannot take it.
        """
        for bytes_per_token in BYTES_PER_TOKEN:
            try:
                await self._submit(run_id, rubric, judgement, judged, bytes_per_token)
            except ContextExceeded:
                # Texts such as hexadecimal numbers have more tokens than prose of the same size.
                if bytes_per_token == BYTES_PER_TOKEN[-1]:
                    raise
            else:
                break

    async def _submit(
        self, run_id: str, rubric: Rubric, judgement: Judgement, judged: Judged, bytes_per_token: int
    ) -> None:
        spec = self._registry[rubric.judge]
        size = sum(message.size for message in judged.conversation) + sum(map(len, judged.answers))
        request = await off_loop(
            size,
            judge_request,
            rubric,
            judged,
            context_tokens=spec.max_model_len,
            bytes_per_token=bytes_per_token,
        )
        principal = await self._identity.principal(self._keys)
        new = NewJob(
            owner=principal.owner,
            model=rubric.judge,
            priority=BATCH_PRIORITY,
            request=request,
            finish_within_s=FINISH_WITHIN_S,
            kind=KIND,
            log_level=LogLevel.NONE,
        )
        # One job for each judgement, however often a process ends between the two commits.
        key = f"judgement-{run_id}-{judgement.id}"
        job, _ = await self._jobs.submit(principal, new, Idempotency(key, hashlib.sha256(key.encode()).hexdigest()))
        if not await self._judgements.submitted(judgement.id, job.id):
            # What is judged was erased since it was read, and the judgement with it: nobody waits for the job.
            await self._jobs.cancel(job.id, principal.project_id)

    # Collecting

    async def _collect(self, due: Sequence[Due]) -> None:
        found = await self._judgements.jobs([str(one.judgement.judge_job_id) for one in due])
        waiting, ended = [], []
        for one in due:
            job = found.get(str(one.judgement.judge_job_id))
            if job is not None and not job.status.terminal:
                waiting.append(one.judgement.id)
            elif await self._end(one, job) and job is not None:
                ended.append(job.id)
        if waiting:
            await self._judgements.look_again(waiting)
        if ended:
            for model, cost in (await self._judgements.costs(ended)).items():
                self._metrics.judge_cost.labels(self._metrics.model_label(model)).inc(float(cost))

    async def _end(self, due: Due, job: JudgeJob | None) -> bool:
        """Write down what an ended job says. False: another process has done so."""
        state, score, reason = JudgementState.FAILED, None, None
        if job is None or (job.status.succeeded and job.output is None):
            reason = "the judge's answer was deleted before it was read"
        elif not job.status.succeeded:
            reason = f"the judge's job has {job.status.value}: {job.error}" if job.error else job.status.value
        else:
            rubric, position = self._rubric_of(due), due.judgement.position
            verdict = read_verdict(rubric, job.output or (), pair=position > 0) if rubric is not None else None
            if rubric is None:
                reason = "its rubric was removed, or changed"
            elif verdict is None:
                state, reason = JudgementState.UNPARSABLE, None
            else:
                # The score of a pair is about the first model, that of the verdict about the answer shown first.
                score = 1 - verdict.score if position == 2 else verdict.score
                state, reason = JudgementState.SCORED, verdict.reason
        if not await self._judgements.end(due.judgement.id, state, score=score, reason=reason):
            return False
        self._metrics.judgements.labels(state.value).inc()
        if state is JudgementState.FAILED:
            logger.warning("judgement=%d rubric=%s failed: %s", due.judgement.id, due.rubric, reason)
        return True

    def _rubric_of(self, due: Due) -> Rubric | None:
        """The rubric of a run, as it is now; None if scores by it do not belong to the run any more."""
        try:
            rubric = self._book.for_comparison(due.rubric, due.judge_model)
        except NotFound:
            return None
        if rubric is None or rubric.identity(due.judge_model) != due.identity:
            return None
        return rubric.model_copy(update={"judge": due.judge_model})

    # Sampled answers

    async def _submit_sampled(self, due: Sequence[Due]) -> None:
        """Submit judgements of sampled answers. Those of sets are submitted by the request that brings their texts; if
        its process has ended, the client sends them again, or they fail."""
        sampled = [one for one in due if one.kind is RunKind.LIVE]
        for one in due:
            if one.kind is not RunKind.LIVE and datetime.now(UTC) - one.judgement.created_at > MAX_UNSENT:
                state = JudgementState.FAILED
                if await self._judgements.end(one.judgement.id, state, reason="its texts were not sent again"):
                    self._metrics.judgements.labels(state.value).inc()
        bodies = await self._bodies.open_bodies([one.judgement.item for one in sampled]) if sampled else {}
        for one in sampled:
            judged = await asyncio.to_thread(judged_body, bodies[one.judgement.item])
            if judged is None:
                continue  # its body is being written: once the lease has ended, it is tried again
            await self._submit_one(one, judged)

    async def _submit_one(self, due: Due, judged: Judged | Unreadable) -> None:
        rubric = self._rubric_of(due)
        if isinstance(judged, Unreadable):
            await self._skip(due, SamplingSkip.BODY, judged.reason)
        elif rubric is None:
            await self._skip(due, SamplingSkip.RUBRIC, "its rubric was removed, or changed")
        else:
            try:
                await self.submit(due.judgement.run_id, rubric, due.judgement, judged)
            except (BudgetExceeded, QuotaExceeded) as error:
                reason = SamplingSkip.BUDGET if isinstance(error, BudgetExceeded) else SamplingSkip.QUOTA
                wait_s = error.retry_after_s if error.retry_after_s is not None else PAUSE_S
                seconds = min(PAUSE_S, max(MIN_PAUSE_S, wait_s))
                await self._samples.pause(due.judgement.run_id, seconds=seconds, reason=reason.value)
                await self._skip(due, reason, error.message)
            except Unavailable as error:
                # Once the lease has ended, it is tried again.
                logger.warning("rubric=%s job=%s cannot be judged yet: %s", due.rubric, due.judgement.item, error)
            except HeadraceError as error:
                await self._skip(due, SamplingSkip.JUDGE, error.message)

    async def _skip(self, due: Due, reason: SamplingSkip, message: str) -> None:
        await self._judgements.drop(due.judgement.id)
        self._metrics.sampling_skipped.labels(reason.value).inc()
        logger.warning("rubric=%s job=%s was not judged: %s", due.rubric, due.judgement.item, message)


def judged_body(body: Body | Missing) -> Judged | Unreadable | None:
    """What a body of the request log has to judge; None if it is being written."""
    if isinstance(body, Missing):
        return None if body.reason is MissingReason.PENDING else Unreadable(body.explanation)
    try:
        conversation = _conversation(body.request)
        output = tuple(Choice.of(one) for one in body.output)
    except (ValidationError, ValueError, TypeError, KeyError) as error:
        # Redaction may have replaced a part that has to have a form, such as an image.
        return Unreadable(f"the body cannot be read: {type(error).__name__}")
    if not output:
        return Unreadable("the log has no answer")
    return Judged(conversation, [answer_text(output[0])])


def _conversation(request: Mapping[str, Any]) -> list[Message]:
    """The conversation of a stored request; a prompt is a message of the user."""
    if (messages := request.get("messages")) is not None:
        return [Message.model_validate(message) for message in messages]
    prompt = request.get("prompt")
    return [Message(role="user", content=prompt if isinstance(prompt, str) else "[a prompt of token ids]")]


def answer_text(choice: Choice) -> str:
    """An answer as text, with the calls of tools that are a part of it."""
    calls = [f"[calls {call.name}: {call.arguments}]" for call in choice.tool_calls]
    return "\n".join(filter(None, [choice.text, *calls]))
