"""Reports on quality for principals: of their own project, or of all projects for administrators."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from api.keys.principal import Principal
from api.keys.projects import readable_projects
from api.keys.store import ApiKeyStore
from api.quality.intervals import YES_NO, Mean, Rate, mean_of_scores
from api.quality.store import (
    Dimension,
    FeedbackCounts,
    Group,
    QualitySelection,
    QualityStore,
    RequestCounts,
    ScoreCounts,
    ScoredRubric,
)
from shared.domain.errors import Unavailable

# Reports that are read at the same time, and how long others wait for that.
AT_ONCE = 2
LONGEST_WAIT_S = 10.0
_NO_REQUESTS = RequestCounts(0, 0, 0, 0, 0)
_NO_FEEDBACK = FeedbackCounts(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Scores:
    """What judges say by a rubric. `mean` is None without scores."""

    rubric: ScoredRubric
    mean: Mean | None
    unparsable: int
    failed: int


@dataclass(frozen=True, slots=True)
class QualityItem:
    """The quality of the answers of a group. `values`: those of the report's dimensions, in their order."""

    day: str | None
    values: Sequence[Any]
    requests: RequestCounts = _NO_REQUESTS
    feedback: FeedbackCounts = _NO_FEEDBACK
    scores: Sequence[Scores] = field(default_factory=tuple)

    @property
    def up(self) -> Rate:
        return Rate(self.feedback.up, self.feedback.ratings)

    @property
    def refusals(self) -> Rate:
        requests = self.requests
        return Rate(requests.refused_by_provider + requests.refused_by_classifier, requests.judged)

    @property
    def errors(self) -> Rate:
        return Rate(self.requests.failed, self.requests.ended)


class QualityService:
    """Reads reports, few at a time, so that they take no connections from submits."""

    def __init__(self, store: QualityStore, keys: ApiKeyStore) -> None:
        self._store = store
        self._keys = keys
        self._room = asyncio.Semaphore(AT_ONCE)

    async def project_ids(self, principal: Principal, names: Sequence[str]) -> set[int] | None:
        """The projects that a principal asks for: its own, unless it is an administrator; None: all.

        Raises:
            InvalidRequest: there is no such project.
            Forbidden: the query is about another project, and the key has no admin scope.
        """
        return await readable_projects(principal, names, self._keys, "quality")

    async def page(self, selection: QualitySelection, *, limit: int, offset: int = 0) -> tuple[list[QualityItem], bool]:
        """`limit` groups after the first `offset`, in the order of their values, and whether there are more.

        Raises:
            InvalidRequest: there are too many groups.
            Unavailable: other reports take too long.
        """
        try:
            async with asyncio.timeout(LONGEST_WAIT_S):
                await self._room.acquire()
        except TimeoutError:
            raise Unavailable("Other reports on quality take too long; try again.") from None
        try:
            requests = await self._store.requests(selection)
            feedback = await self._store.feedback(selection)
            scores = await self._store.scores(selection)
        finally:
            self._room.release()
        # Of up to `MAX_ROWS` groups per source.
        groups = {*requests, *feedback, *(group for group, _ in scores)}
        shown, has_more = await asyncio.to_thread(_page, groups, limit, offset)
        wanted = set(shown)
        by_group: dict[Group, list[tuple[ScoredRubric, ScoreCounts]]] = {}
        for (group, rubric), counts in scores.items():
            if group in wanted:
                by_group.setdefault(group, []).append((rubric, counts))
        means = await asyncio.to_thread(_means, by_group) if by_group else {}
        names: dict[int, str] = {}
        if Dimension.PROJECT in selection.group_by:
            place = selection.group_by.index(Dimension.PROJECT) + 1
            names = await self._store.project_names({group[place] for group in shown if group[place] is not None})
        items = []
        for group in shown:
            values = [
                names.get(value, "") if dimension is Dimension.PROJECT else value
                for dimension, value in zip(selection.group_by, group[1:], strict=True)
            ]
            items.append(
                QualityItem(
                    selection.periods.names[group[0]] if selection.by_day else None,
                    values,
                    requests.get(group, _NO_REQUESTS),
                    feedback.get(group, _NO_FEEDBACK),
                    means.get(group, ()),
                )
            )
        return items, has_more


def _page(groups: Collection[Group], limit: int, offset: int) -> tuple[list[Group], bool]:
    """The groups of a page, in order, and whether there are more."""
    return sorted(groups, key=_order)[offset : offset + limit], len(groups) > offset + limit


def _order(group: Group) -> tuple[Any, ...]:
    """The place of a group: the day, then its values; groups without a value come first."""
    return tuple((value is not None, value) if value is not None else (False, 0) for value in group)


def _means(by_group: dict[Group, list[tuple[ScoredRubric, ScoreCounts]]]) -> dict[Group, list[Scores]]:
    return {
        group: [
            Scores(rubric, mean_of_scores(one.scores, yes_no=rubric.scale == YES_NO), one.unparsable, one.failed)
            for rubric, one in sorted(found, key=lambda pair: pair[0])
        ]
        for group, found in by_group.items()
    }
