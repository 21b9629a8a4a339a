"""Decides whether the response cache serves a request, and with which key."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from sqlalchemy.exc import SQLAlchemyError

from api.cache.key import Partition, cache_key
from api.cache.store import CacheStore
from api.keys.principal import Principal
from shared.config.models.loader import Registry
from shared.domain.answer_options import MAX_CACHE_TTL_S, CacheOptions
from shared.domain.decisions import BypassReason, CacheDecision, CacheOutcome
from shared.domain.job import Job
from shared.domain.log_level import LogLevel
from shared.domain.new_job import Idempotency, NewJob
from shared.domain.owner import MAX_END_USER
from shared.domain.request import GenerateRequest
from shared.postgres.job_store import JobStore
from shared.runtime.offload import off_loop
from shared.runtime.outages import is_database_outage
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

# A lookup that takes longer has failed: the request is then run.
LOOKUP_TIMEOUT_S = 2.0
# The maximum number of entries whose hits are counted between two writes.
MAX_USES = 10_000
# Errors of the database, and of the connection to it.
_ERRORS = (SQLAlchemyError, OSError, TimeoutError)


class ResponseCache:
    """Answers repeated requests with the answers of earlier jobs.

    No error of the cache reaches a client: the request runs as without it. Only if the database is lost while the job
    with the answer is written, that is an error, as for any other job: whether it was written is unknown.
    """

    def __init__(
        self, registry: Registry, store: CacheStore, jobs: JobStore, metrics: Metrics, *, secret: bytes | None = None
    ) -> None:
        """`secret`: None takes the one that the database keeps."""
        self._registry = registry
        self._store = store
        self._jobs = jobs
        self._metrics = metrics
        self._secret = secret
        self._uses: Counter[bytes] = Counter()

    async def admit(self, principal: Principal, new: NewJob) -> NewJob:
        """Add the decision about an admitted job, and the key of its answer if the cache serves it."""
        control, spec = new.options.cache_control, self._registry.models.get(new.model)
        options = new.options.cache or principal.options.cache
        if options is None and spec is not None and not principal.options.no_cache:
            options = spec.cache
        if options is None and control.max_age_s:
            options = CacheOptions(ttl=min(control.max_age_s, MAX_CACHE_TTL_S))
        if new.kind is not None or spec is None or (options is None and not control.no_store):
            return new
        reason = BypassReason.NO_STORE if options is None else _bypass_reason(options, new)
        if reason is not None or options is None:
            return _with(new, CacheDecision(outcome=CacheOutcome.BYPASS, reason=reason))
        key = await self._key(options, new, spec.revision)
        if key is None:
            return _with(new, CacheDecision(outcome=CacheOutcome.BYPASS, reason=BypassReason.UNAVAILABLE))
        decision = CacheDecision(outcome=CacheOutcome.MISS, ttl_s=options.ttl, revision=spec.revision)
        return replace(_with(new, decision), cache_key=key)

    async def answer(self, new: NewJob, idempotency: Idempotency | None) -> tuple[Job, bool] | None:
        """Create a job that has the cached answer; None if there is none. Otherwise as `JobStore.answer`.

        Raises:
            sqlalchemy.exc.SQLAlchemyError, OSError: the database was lost while the job was written.
        """
        if new.cache_key is None or new.options.cache_control.no_cache:
            return None
        try:
            # Only the lookup: a write that was abandoned would be committed all the same, beside the job that is run.
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                answer_bytes = await self._jobs.cached_bytes(new)
        except _ERRORS as error:
            self._failed(error)
            return None
        if answer_bytes is None:
            return None
        try:
            answered = await self._jobs.answer(new, idempotency, answer_bytes=answer_bytes)
        except SQLAlchemyError as error:
            if is_database_outage(error):
                raise  # the job may have been written
            self._failed(error)
            return None
        if answered is not None and answered[1]:
            self.add_uses({new.cache_key: 1})
        return answered

    def take_uses(self) -> Counter[bytes]:
        """The number of hits by key since the last call. The entries' rows are not written for each hit: hits of the
        same entry would wait for each other."""
        uses, self._uses = self._uses, Counter()
        return uses

    def add_uses(self, uses: Mapping[bytes, int]) -> None:
        """Count hits by key; beyond `MAX_USES` keys, those of further keys are not counted."""
        for key, count in uses.items():
            if key in self._uses or len(self._uses) < MAX_USES:
                self._uses[key] += count

    async def _key(self, options: CacheOptions, new: NewJob, revision: str) -> bytes | None:
        """The key of the answer; None if it cannot be computed now."""
        owner = new.owner
        member = {"project": None, "key": owner.key_id, "user": owner.end_user}[options.scope]
        try:
            secret = self._secret or await self._load_secret()
        except _ERRORS as error:
            self._failed(error)
            return None
        partition = Partition(owner.project_id, options.scope, member)
        size = new.request.size + new.request.options_size
        return await off_loop(size, cache_key, secret, partition, new.model, revision, new.request)

    async def _load_secret(self) -> bytes:
        async with asyncio.timeout(LOOKUP_TIMEOUT_S):
            self._secret = await self._store.secret(secrets.token_bytes(32))
        return self._secret

    def _failed(self, error: BaseException) -> None:
        self._metrics.cache_errors.inc()
        logger.warning("the response cache is unavailable, running the request: %s", error or type(error).__name__)


def _with(new: NewJob, decision: CacheDecision) -> NewJob:
    return replace(new, decisions=new.decisions.model_copy(update={"cache": decision}))


def _bypass_reason(options: CacheOptions, new: NewJob) -> BypassReason | None:
    """Why the answer to a request is neither looked up nor stored although the cache is on for it; None if it is."""
    request = new.options
    if request.cache_control.no_store or new.log_level is LogLevel.NONE:
        return BypassReason.NO_STORE
    if new.request.prompt_only:
        return BypassReason.PROMPT_ONLY
    asked = request.cache is not None or bool(request.cache_control.max_age_s)
    if not (asked or _is_repeatable(new.request)):
        return BypassReason.NOT_REPEATABLE
    # A name that may have been cut can stand for several users.
    user = new.owner.end_user
    if options.scope == "user" and (user is None or len(user) >= MAX_END_USER):
        return BypassReason.NO_END_USER
    return None


def _is_repeatable(request: GenerateRequest) -> bool:
    """Whether running the request again is expected to result in the same answer.

    What is at a URL, such as the latest image of a camera, may have changed.
    """
    if any(part.source == "url" for message in request.messages or () for part in message.media):
        return False
    return request.sampling.temperature == 0 or request.sampling.seed is not None
