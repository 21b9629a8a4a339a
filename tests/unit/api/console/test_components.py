"""The parts that pages are built of."""

from __future__ import annotations

import re
from typing import Any

from api.console.navigation import address
from api.console.templates import environment


def pager(*arguments: Any, **options: Any) -> str:
    components: Any = environment.get_template("components.html").module
    return str(components.pager(*arguments, **options))


def test_a_pager_leads_to_the_pages_that_exist() -> None:
    assert pager(None, None).strip() == ""
    links = re.compile(r'href="([^"]*)">([^<]*)<')
    assert links.findall(pager("keys", None)) == [("keys", "Newest")]
    following = address("keys", project="a&b", after="key_7")
    assert links.findall(pager(None, following)) == [("keys?project=a%26b&amp;after=key_7", "Older")]
    both = pager("projects", "projects?after=x", words=("First page", "Next page"), label="Pages of projects")
    assert links.findall(both) == [("projects", "First page"), ("projects?after=x", "Next page")]
    assert 'aria-label="Pages of projects"' in both


def test_a_pager_says_what_its_page_has() -> None:
    shown = pager(None, None, note="3 <jobs>")
    assert '<span class="soft">3 &lt;jobs&gt;</span>' in shown
    assert "href" not in shown


def test_an_address_has_the_conditions_that_are_set() -> None:
    assert address("keys", project="", after=None) == "keys"
    assert address("keys", project="a b", after="key_7") == "keys?project=a+b&after=key_7"
