"""The state of an attempt: its job, the answer so far, and how the generation was stopped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import cast

from shared.domain.events import UpstreamState
from shared.domain.job import Job, Usage
from shared.domain.ledger import Run, Source
from shared.domain.transcript import Transcript
from shared.telemetry.tracing import AttemptTrace
from workers.engines.base import AdapterEngine, Prior, PromptInfo
from workers.execution.attempts.context import AttemptContext, InterruptReason
from workers.execution.attempts.early_start import EarlyStart
from workers.execution.job_metrics import JobMetrics
from workers.execution.log_writer import LogBuffer


class AttemptState:
    """What the parts of an attempt share. The job is another one after a handover (`handover`)."""

    def __init__(self, job: Job, context: AttemptContext, early: EarlyStart | None = None) -> None:
        """`early`: the engine has the request already."""
        request = job.request.for_provider(context.provider)
        if context.max_output is not None and job.decisions.has_moved:
            request = request.with_output_of(context.max_output)
        self.context = context
        self.early = early
        self.job = replace(job, request=request)
        # On the monotonic clock.
        self.claimed_at = time.monotonic()
        self.interrupt_reason: InterruptReason | None = None
        self.generation: asyncio.Task[None] | None = None
        # Notes that a request of the upstream is to be cancelled (`abandoned_requests`).
        self.abandoning: asyncio.Task[None] | None = None
        self.suspect = job.suspect
        # Whether this attempt has generated a token.
        self.generated = False
        # Whether readers may have seen output that the engine cannot continue.
        self.stuck = False
        self.log = LogBuffer(job.id, job.attempt, context.metrics, job.model, counted=job.request.token_counts)
        self.transcript = Transcript(job.request.sampling.n)
        self.trace = AttemptTrace()
        self.metrics = JobMetrics(context.metrics, job)
        if request is not job.request:
            self.metrics.parts_dropped(job.request.opaque_parts - request.opaque_parts)
        self.prompt = PromptInfo(0)
        self.reported_usage: Usage | None = None
        # Tokens that this attempt continues from, and the earlier attempts, from the log.
        self.prior_tokens = 0
        self.earlier_runs: Mapping[int, Run] = {}
        # How often the output was discarded, and the tokens of this attempt that were.
        self.restarts = 0
        self.discarded_tokens = 0
        # Whether the upstream's request of an earlier attempt is resumed, instead of a new one sent.
        self.resumes_request = False
        # Whether the upstream's request in the transcript has ended, so that there is nothing to cancel.
        self.run_ended = False
        # The first token of this attempt, and that of the earlier attempts whose output it continues.
        self.first_token_at: datetime | None = None
        self.earlier_first_token_at: datetime | None = None

    @property
    def complete(self) -> bool:
        """Whether every choice has its finish reason."""
        return not self.transcript.empty and all(self.transcript.finish_reasons)

    @property
    def prior(self) -> Prior:
        """What earlier attempts emitted, as the engine needs it."""
        transcript = self.transcript
        # Attempts of versions that did not report a fingerprint count as comparable: a difference shows then.
        comparable = transcript.fingerprints - {None} <= {self.fingerprint}
        return Prior(transcript.deltas(), comparable, transcript.upstream, transcript.cursor)

    @property
    def fingerprint(self) -> str:
        """Identifies what generates the answer: the engine's model, or an adapter of it."""
        engine, adapter = self.context.engine, self.job.request.adapter
        return engine.fingerprint if adapter is None else cast(AdapterEngine, engine).adapter_fingerprints[adapter]

    @property
    def revision(self) -> str | None:
        """The revision of the entry of the job's model."""
        adapter = self.job.request.adapter
        return self.context.revision if adapter is None else self.context.adapter_revisions[adapter]

    @property
    def running_upstream(self) -> UpstreamState | None:
        """The upstream's request in the transcript, unless it has ended."""
        return None if self.run_ended else self.transcript.upstream

    @property
    def tokens(self) -> int:
        """Tokens that this attempt generated."""
        return max(0, self.usage.completion_tokens - self.prior_tokens)

    @property
    def first_token_of_output(self) -> datetime | None:
        """When the first token of the output was generated, by whichever attempt."""
        return self.earlier_first_token_at or self.first_token_at

    @property
    def usage(self) -> Usage:
        """The usage so far: as the upstream reported it, if it did; otherwise as counted here."""
        if self.reported_usage is not None:
            return self.reported_usage
        return Usage(self.prompt.prompt_tokens, self.prompt.cached_tokens, self.transcript.tokens)

    @property
    def source(self) -> Source:
        """Who reported the usage so far."""
        if self.reported_usage is not None:
            return Source.PROVIDER
        return Source.ENGINE if self.prompt.prompt_tokens else Source.ESTIMATE

    @property
    def runs(self) -> dict[int, Run]:
        """What is known of this attempt and of the earlier ones, by their numbers."""
        own = Run(
            self.tokens + self.discarded_tokens,
            prior=self.prior_tokens,
            resumed=self.resumes_request,
            prompt_tokens=self.prompt.prompt_tokens,
        )
        return {**self.earlier_runs, self.job.attempt: own}

    def database_now(self) -> datetime:
        """The database's clock: the time of the claim, plus the time that has passed here since."""
        return self.job.attempts[-1].started_at + timedelta(seconds=time.monotonic() - self.claimed_at)

    def abort(self, reason: InterruptReason) -> None:
        """Stop the generation; the first reason counts."""
        if self.interrupt_reason is None:
            self.interrupt_reason = reason
        if self.generation is not None:
            self.generation.cancel()
