"""Tables that become blocks on a phone stay tables for screen readers."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from jinja2 import Environment

from api.console.table_roles import TableRoles
from tests.unit.api.console.test_design import TEMPLATES

STACKED = [template for template in TEMPLATES if 'class="table stacked' in template.read_text()]
ENVIRONMENT = Environment(extensions=[TableRoles])  # noqa: S701  # renders nothing
ROLES = {"table": "table", "thead": "rowgroup", "tbody": "rowgroup", "tr": "row", "th": "columnheader", "td": "cell"}


class Elements(HTMLParser):
    """The elements of tables, with their roles."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ROLES:
            self.found.append((tag, dict(attrs).get("role")))


@pytest.mark.parametrize("template", STACKED, ids=lambda path: path.name)
def test_elements_of_stacked_tables_have_roles(template: Path) -> None:
    source = template.read_text()
    parser = Elements()
    parser.feed(ENVIRONMENT.preprocess(source))
    stacked = [(tag, role) for tag, role in parser.found if role is not None]
    assert len([tag for tag, _ in stacked if tag == "table"]) == source.count('class="table stacked')
    assert {"table", "thead", "tbody", "tr", "th"} <= {tag for tag, _ in stacked}  # rows may be another template
    assert all(role == ROLES[tag] for tag, role in stacked)
    if source.count("<table") == source.count('class="table stacked'):
        assert len(stacked) == len(parser.found)
