"""Gives the tables that become blocks on a phone their roles, while templates are compiled.

Browsers take a table with another `display` for no table, so that a screen reader finds neither rows nor the header of
a cell. With `class="table stacked"`, roles are written beside the elements; templates do not repeat them. A template of
rows alone names its table by the comment `of a stacked table`.
"""

from __future__ import annotations

import re

from jinja2.ext import Extension

_STACKED = re.compile(r'<table class="table stacked.*?</table>|\{# of a stacked table #\}.*', re.DOTALL)
_ELEMENT = re.compile(r"<(table|thead|tbody|tr|th|td)(?=[\s>{])")
_ROLES = {
    "table": "table",
    "thead": "rowgroup",
    "tbody": "rowgroup",
    "tr": "row",
    "th": "columnheader",
    "td": "cell",
}


class TableRoles(Extension):
    """The extension of the templates' environment."""

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        return _STACKED.sub(lambda table: _ELEMENT.sub(_with_role, table[0]), source)


def _with_role(element: re.Match[str]) -> str:
    return f'{element[0]} role="{_ROLES[element[1]]}"'
