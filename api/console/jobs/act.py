"""Cancelling or replaying all jobs of a list: what the pages of one act pass on to each other.

An act is done in steps, each of which is a request for a page of jobs. Its address has all that the next step needs, so
that a reload goes on where it was. A seal keeps other sites from making up an address that starts an act.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Self
from urllib.parse import urlencode

from api.console.jobs.conditions import RANGES, Conditions, read
from api.console.viewer import Viewer
from api.jobs.actions import MAX_COUNT, Action, ActionPage, JobCount
from api.jobs.search import JobQuery
from shared.domain.errors import Forbidden
from shared.domain.job import JobStatus

# The most jobs of one act.
MAX_JOBS = MAX_COUNT


@dataclass(frozen=True, slots=True)
class Act:
    """What is done with which jobs, and how far it has come.

    `name` is the idempotency key of replays. `until`: later jobs are not of the act. `after`: the last job so far.
    """

    action: Action
    conditions: Conditions
    name: str
    until: datetime
    count: int
    is_complete: bool
    after: str | None = None
    done: int = 0
    ended: int = 0
    failed: int = 0
    last_error: str = ""
    is_over: bool = False

    @classmethod
    def new(cls, action: Action, conditions: Conditions, counted: JobCount) -> Self | None:
        """A new act; None if it has no jobs."""
        if counted.created_before is None:
            return None
        return cls(action, conditions, secrets.token_hex(8), counted.created_before, counted.count, counted.is_complete)

    @property
    def seen(self) -> int:
        """The jobs so far."""
        return self.done + self.ended + self.failed

    def query(self, viewer: Viewer) -> JobQuery:
        """The query for its jobs."""
        query = self.conditions.query(datetime.now(UTC), all_projects=viewer.project_id is None)
        until = self.until if query.created_before is None else min(self.until, query.created_before)
        return replace(query, created_before=until)

    def with_page(self, page: ActionPage) -> Self:
        """The act after another page of jobs."""
        errors = [result.error for result in page.results if result.error is not None]
        stopped = (JobStatus.CANCELLED, JobStatus.CANCELLING)
        done = sum(
            result.error is None and (self.action is Action.REPLAY or result.status in stopped)
            for result in page.results
        )
        seen = self.seen + len(page.results)
        return replace(
            self,
            after=page.page.cursor or self.after,
            done=self.done + done,
            ended=self.ended + len(page.results) - done - len(errors),
            failed=self.failed + len(errors),
            last_error=errors[-1] if errors else self.last_error,
            is_over=page.page.cursor is None or seen >= MAX_JOBS,
        )

    def parameters(self, viewer: Viewer) -> list[tuple[str, str]]:
        """The fields of the form that does the next step, and the parameters of the address that shows it."""
        progress = {
            "after": self.after or "",
            "done": str(self.done),
            "ended": str(self.ended),
            "failed": str(self.failed),
            "over": "1" if self.is_over else "",
        }
        sealed = self._sealed()
        return [*sealed, ("seal", _seal(viewer, sealed)), *((name, text) for name, text in progress.items() if text)]

    def _sealed(self) -> list[tuple[str, str]]:
        return [
            *self.conditions.parameters(),
            ("action", self.action.value),
            ("name", self.name),
            ("until", self.until.isoformat()),
            ("count", str(self.count)),
            ("complete", "1" if self.is_complete else ""),
        ]

    @classmethod
    def read(cls, viewer: Viewer, pairs: Iterable[tuple[str, str]]) -> Self:
        """The act of an address or of a form.

        Raises:
            Forbidden: this session has not made it.
        """
        pairs = list(pairs)
        given = dict(pairs)
        try:
            act = cls(
                Action(given["action"]),
                read(pairs).conditions,
                given["name"],
                datetime.fromisoformat(given["until"]),
                int(given["count"]),
                given["complete"] == "1",
                after=given.get("after") or None,
                done=int(given.get("done", "0")),
                ended=int(given.get("ended", "0")),
                failed=int(given.get("failed", "0")),
                is_over=given.get("over") == "1",
            )
        except (KeyError, ValueError):
            raise Forbidden(_UNKNOWN) from None
        if not hmac.compare_digest(given.get("seal", "").encode(), _seal(viewer, act._sealed()).encode()):
            raise Forbidden(_UNKNOWN)
        return act


_UNKNOWN = "This page was made by another session. Go back to the list, and start again."


def absolute(conditions: Conditions, now: datetime) -> Conditions:
    """The same conditions with a time instead of a range, so that they mean the same in each step."""
    if conditions.range is None:
        return conditions
    start = (now - RANGES[conditions.range]).replace(microsecond=0)
    return conditions.changed(range=None, start=start if conditions.start is None else max(start, conditions.start))


def _seal(viewer: Viewer, pairs: Iterable[tuple[str, str]]) -> str:
    text = f"act {urlencode(list(pairs))}"
    return hmac.new(viewer.session_token.encode(), text.encode(), hashlib.sha256).hexdigest()
