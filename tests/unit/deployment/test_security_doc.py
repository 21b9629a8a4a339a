"""The tests that docs/security.md names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
DOCUMENT = (REPOSITORY / "docs/security.md").read_text()
NAMED = sorted(set(re.findall(r"`((?:e2e|integration|unit)/[\w/]+\.py)(?:::(\w+))?`", DOCUMENT)))


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_a_named_test_exists(file: str, test: str) -> None:
    source = (REPOSITORY / "tests" / file).read_text()
    assert not test or f"def {test}(" in source


def test_every_risk_names_a_test_or_says_that_none_covers_it() -> None:
    rows = [line for line in DOCUMENT.splitlines() if re.match(r"\| (API|LLM)\d", line)]
    assert len(rows) == 20
    for row in rows:
        test = row.split("|")[3]
        assert ".py" in test or "not covered" in test or row.startswith("| LLM08"), row
