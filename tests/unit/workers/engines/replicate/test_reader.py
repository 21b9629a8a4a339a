"""States of predictions that are not quite JSON."""

from __future__ import annotations

import pytest

from shared.domain.events import Delta
from workers.engines.base import NO_PRIOR
from workers.engines.replicate.reader import PredictionReader


@pytest.mark.parametrize(
    ("member", "text"), [(rb'"output":["a\ud83d"]', "a\ufffd"), (b'"output":["a"],"score":NaN', "a")]
)
def test_a_state_with_what_json_has_not(member: bytes, text: str) -> None:
    """Models that Python or JavaScript runs send NaN and halves of characters."""
    reader = PredictionReader(NO_PRIOR, None, lambda *_: None)
    reader.expect_state()
    list(reader.feed(b'{"id":"prediction","status":"succeeded",' + member + b"}"))
    deltas = [item for item in reader.end() if isinstance(item, Delta)]
    assert ("".join(delta.text for delta in deltas), reader.failure) == (text, None)
