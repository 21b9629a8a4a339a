"""Fills the prefix cache of a model's engine before the worker takes jobs."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from shared.config.models.vllm import VllmModel
from shared.config.models.warm_prompts import WarmPrompt
from shared.domain.errors import InvalidRequest
from shared.postgres.prefix_store import PrefixStore, ProjectPrefixes, ReusedPrefix
from shared.postgres.warm_up_store import WarmedPrefix, WarmUpStore
from shared.telemetry.metrics import Metrics
from workers.engines.base import EngineDead, EngineError, PrefixEngine

logger = logging.getLogger(__name__)

# The number of projects, the most recent users of the model, for which an entry without `projects` is computed.
MAX_PROJECTS = 16
# The share of the cache that may be filled. More would evict earlier prefixes.
SHARE = 0.8
# Groups of jobs that are compared for each prefix of `top`: several may have the same prefix.
CANDIDATES = 4
PROGRESS_S = 2.0


@dataclass(frozen=True, slots=True)
class _Prefix:
    """A prefix of a project's prompts; `source` is its origin, for log lines."""

    source: str
    project: ProjectPrefixes
    tokens: array[int]

    @property
    def digest(self) -> bytes:
        """Identifies the project and the tokens."""
        return hashlib.sha256(self.project.salt.encode() + self.tokens.tobytes()).digest()


class WarmUp:
    """Fills the cache with the prefixes that the model's entry names.

    It never fails: a prefix that cannot be computed is logged and skipped, as are all others once the time limit
    is reached. A prefix with which the engine died is not tried again by this process.
    """

    def __init__(
        self,
        model: VllmModel,
        engine: Callable[[], PrefixEngine],
        store: PrefixStore,
        ledger: WarmUpStore,
        metrics: Metrics,
    ) -> None:
        """`engine` returns the current engine."""
        self.model = model
        self._engine = engine
        self._store = store
        self._ledger = ledger
        self._metrics = metrics
        self._deadly: set[bytes] = set()

    @property
    def needed(self) -> bool:
        """Whether the model's entry names any prefixes."""
        return bool(self.model.warm_prompts)

    async def run(self) -> None:
        """Fill the cache; returns after the time limit of the model's entry at the latest."""
        if not self.needed:
            return
        model, began = self.model, time.monotonic()
        progress = _Progress(model.name)
        limit_s = model.warm_prompts_timeout_s
        try:
            async with asyncio.timeout(limit_s) as timeout:
                await self._fill(progress)
        except TimeoutError:
            if not timeout.expired():
                logger.exception("model=%s the prompt cache is only partly warm", model.name)
            else:
                logger.warning(
                    "model=%s warm_prompts: reached the limit of %g s; the remaining prefixes stay cold",
                    model.name, limit_s,
                )  # fmt: skip
        except EngineDead:
            logger.error("model=%s the engine died while its prompt cache was being filled", model.name)
        except Exception:
            logger.exception("model=%s the prompt cache is only partly warm", model.name)
        took_s = time.monotonic() - began
        await self._record(progress)
        self._metrics.warmed_up(model.name, progress.warm, progress.failed, progress.tokens, took_s)
        logger.info(
            "model=%s prompt cache warm: %d prefixes, %d tokens in %.1f s; %d failed",
            model.name, progress.warm, progress.tokens, took_s, progress.failed,
        )  # fmt: skip

    async def _record(self, progress: _Progress) -> None:
        """Record what was computed in the ledger."""
        try:
            await self._ledger.record(self.model.name, self.model.engine, progress.prefixes)
        except Exception:
            logger.exception("model=%s cannot record the usage of its warm-up", self.model.name)

    async def _fill(self, progress: _Progress) -> None:
        room = int(self._engine().prefix_room * SHARE)
        if not room:
            logger.warning("model=%s warm_prompts: the engine caches no prefixes of this model", self.model.name)
            return
        seen: set[bytes] = set()
        for position, entry in enumerate(self.model.warm_prompts):
            async for prefix in self._prefixes(f"warm_prompts[{position}]", entry, progress):
                digest = prefix.digest
                if digest in seen:
                    continue
                seen.add(digest)
                if digest in self._deadly:
                    progress.leave_out(prefix, "the engine died while it was computed")
                elif len(prefix.tokens) > room:
                    progress.leave_out(prefix, f"{room} tokens are left of the part of the cache that may be filled")
                else:
                    room -= await self._prefill(prefix, progress)

    async def _prefill(self, prefix: _Prefix, progress: _Progress) -> int:
        """Compute a prefix; returns how many of its tokens were not in the cache yet."""
        began = time.monotonic()
        try:
            cached = await self._engine().prefill(f"warm-{progress.warm}", prefix.tokens, prefix.project.salt)
        except (EngineError, InvalidRequest) as error:
            progress.leave_out(prefix, str(error))
            return 0
        except EngineDead:
            self._deadly.add(prefix.digest)
            raise
        progress.done(prefix, cached, time.monotonic() - began)
        return len(prefix.tokens) - cached

    async def _prefixes(self, path: str, entry: WarmPrompt, progress: _Progress) -> AsyncIterator[_Prefix]:
        """The prefixes of an entry, for each of its projects. One that cannot be rendered is logged and skipped."""
        store, model = self._store, self.model.name
        projects: Sequence[ProjectPrefixes] | None = None
        if entry.top is None or entry.projects is not None:
            projects = await store.projects(model, entry.projects, MAX_PROJECTS)
            for name in sorted({*(entry.projects or ())} - {project.name for project in projects}):
                logger.error("%s: there is no project %r with a valid key", self.model.place(f"{path}.projects"), name)
        if entry.top is not None:
            async for prefix in self._most_reused(path, entry, projects):
                yield prefix
            return
        try:
            tokens = await self._engine().prefix(await asyncio.to_thread(entry.requests))
        except (OSError, UnicodeDecodeError, InvalidRequest) as error:
            logger.error("%s: skipped: %s", self.model.place(path), error)
            progress.failed += 1
            return
        for project in projects or () if tokens else ():
            yield _Prefix(f"{path} ({entry.label})", project, array("I", tokens))

    async def _most_reused(
        self, path: str, entry: WarmPrompt, projects: Sequence[ProjectPrefixes] | None
    ) -> AsyncIterator[_Prefix]:
        """The prefixes that saved most tokens, without those that an earlier one begins with."""
        assert entry.top is not None
        ids = None if projects is None else [project.id for project in projects]
        groups = await self._store.most_reused(
            self.model.name, hours=entry.hours, limit=CANDIDATES * entry.top, project_ids=ids
        )
        owners = await self._store.by_id({group.project_id for group in groups})
        chosen: dict[int, list[array[int]]] = {}
        left = entry.top
        for group in groups:
            tokens = await self._common_prefix(group)
            of_project = chosen.setdefault(group.project_id, [])
            if not tokens or any(other[: len(tokens)] == tokens for other in of_project):
                continue
            # A prefix that this one extends is already warm and needs no further space.
            left -= all(tokens[: len(other)] != other for other in of_project)
            of_project.append(tokens)
            yield _Prefix(f"{path} ({entry.label})", owners[group.project_id], tokens)
            if not left:
                return

    async def _common_prefix(self, group: ReusedPrefix) -> array[int]:
        """The common prefix of a group's prompts, as far as the jobs found it in the cache."""
        requests = await self._store.requests(group.job_ids)
        try:
            tokens = await self._engine().prefix(requests) if requests else []
        except InvalidRequest as error:  # the template or the context of the model has changed
            logger.info("model=%s skipping a reused prefix: %s", self.model.name, error)
            return array("I")
        return array("I", tokens[: group.tokens])


class _Progress:
    """Counts computed prefixes, and logs the progress periodically."""

    def __init__(self, model: str) -> None:
        self.warm = 0
        self.failed = 0
        self.tokens = 0
        self.prefixes: list[WarmedPrefix] = []
        self._model = model
        self._logged = -PROGRESS_S

    def done(self, prefix: _Prefix, cached: int, took_s: float) -> None:
        """Count a prefix that is warm now."""
        self.warm += 1
        self.prefixes.append(WarmedPrefix(prefix.project.id, len(prefix.tokens), cached))
        self.tokens += len(prefix.tokens)
        now = time.monotonic()
        if now - self._logged >= PROGRESS_S:
            self._logged = now
            logger.info(
                "model=%s warming its prompt cache: %d prefixes, %d tokens so far; %s for project %s took %.2f s",
                self._model, self.warm, self.tokens, prefix.source, prefix.project.name, took_s,
            )  # fmt: skip

    def leave_out(self, prefix: _Prefix, reason: str) -> None:
        """Count a prefix that stays cold."""
        self.failed += 1
        logger.warning(
            "model=%s %s for project %s, %d tokens, stays cold: %s",
            self._model, prefix.source, prefix.project.name, len(prefix.tokens), reason,
        )  # fmt: skip
