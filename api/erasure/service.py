"""Erases the data of an end user of a project, in steps of limited size."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from redis.exceptions import RedisError

from api.erasure.pseudonyms import Pseudonyms
from api.erasure.run import DataStores, ErasureRun
from api.erasure.store import Export
from api.keys.principal import Principal, Scope
from shared.domain.errors import Forbidden, InvalidRequest, Unavailable
from shared.domain.owner import end_user_name
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

# How long one call may take, apart from the batch that it has begun. What is left then is erased by the next one.
MAX_S = 20.0


@dataclass(frozen=True, slots=True)
class Erasure:
    """What a call has erased, by what it was, and what is left.

    `complete`: nothing is left that this call could have erased. `unended_batches`: batches with requests of the user,
    whose files can be erased when they have ended. `exports`: the exports that may have data of the user. `named_in`:
    the budgets and limits that operators have created for the user.
    """

    complete: bool
    counts: Mapping[str, int]
    unended_batches: Sequence[str]
    exports: Sequence[Export]
    named_in: Sequence[str]


class ErasureService:
    """Erases all that is stored of an end user."""

    def __init__(self, data: DataStores, pseudonyms: Pseudonyms, metrics: Metrics, *, max_s: float = MAX_S) -> None:
        self._data = data
        self._pseudonyms = pseudonyms
        self._metrics = metrics
        self._max_s = max_s

    async def erase(self, principal: Principal, user: str, project: str | None = None) -> Erasure:
        """Erase the data of an end user of the key's project, or of another one.

        It can be repeated: a call erases what earlier ones have left, and what was added since.

        Raises:
            Forbidden: the key has neither the scope `erase` nor `admin`, or the latter is required.
            InvalidRequest: there is no such project.
            Unavailable: Redis is unavailable. Nothing is lost; the call can be repeated.
        """
        project_id = await self._project(principal, project)
        end_user = end_user_name(user)
        assert end_user is not None, "the path has no empty part"
        run = ErasureRun(self._data, project_id, end_user, self._max_s)
        try:
            await run.run()
        except (RedisError, OSError) as error:
            raise Unavailable("Redis is unavailable; send the request again.") from error
        finally:
            if counts := run.found:
                name, *others = await self._pseudonyms.of(project_id, end_user)
                await self._data.store.record(principal.key_id, project_id, name, counts, others)
                logger.warning("user=%s project=%d erased by key_%d", name, project_id, principal.key_id)
        complete = not (run.is_late or run.unended)
        self._metrics.erasures.labels("complete" if complete else "partial").inc()
        return Erasure(
            complete,
            run.found,
            run.unended,
            await self._data.store.exports(project_id),
            await self._data.store.named_in(project_id, end_user),
        )

    async def _project(self, principal: Principal, name: str | None) -> int:
        if Scope.ADMIN not in principal.scopes:
            principal.require(Scope.ERASE)
        if name is None:
            return principal.project_id
        project_id = await self._data.store.project_id(name)
        if Scope.ADMIN not in principal.scopes and project_id != principal.project_id:
            raise Forbidden("project: another project needs a key with the `admin` scope.", param="project")
        if project_id is None:
            raise InvalidRequest(f"project: there is no project {name[:64]!r}", param="project")
        return project_id
