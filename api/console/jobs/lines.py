"""The lines of the list as HTML. A line that stays the same is rendered once: that of a job that has ended, mostly."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from api.console.jobs.view import Row
from api.console.templates import render

# About two kilobytes each.
MOST = 2000


class Lines:
    """Renders lines, and remembers the last ones: a list that many look at, or that one reads again, is the same."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, bool, bool], tuple[Row, Markup]] = {}

    def render(self, rows: Sequence[Row], *, all_projects: bool, can_select: bool) -> Markup:
        """The lines of these jobs. `all_projects`: with their projects; `can_select`: with a checkbox."""
        return Markup("").join(self._line(row, all_projects, can_select) for row in rows)

    def _line(self, row: Row, all_projects: bool, can_select: bool) -> Markup:
        key = (row.id, all_projects, can_select)
        known = self._known.pop(key, None)
        if known is None or known[0] != row:
            values = {"row": row, "all_projects": all_projects, "can_select": can_select}
            known = row, render("jobs/row.html", values)
            if len(self._known) >= MOST:
                del self._known[next(iter(self._known))]  # the one that was not shown for the longest time
        self._known[key] = known
        return known[1]
