"""States of predictions that are not quite JSON."""

from __future__ import annotations

import pytest

from shared.domain.events import Delta
from workers.engines.base import NO_PRIOR
from workers.engines.replicate.reader import PredictionReader
from workers.engines.upstream.errors import ErrorBody


@pytest.mark.parametrize(
    ("last", "failure"),
    [
        ("{}", None),
        ("", None),
        ('{"reason": "error"}', ErrorBody("its stream ended with the reason error")),
        ('{"reason": "canceled"}', ErrorBody("its stream ended with the reason canceled")),
    ],
)
def test_a_stream_that_ends_with_a_reason(last: str, failure: ErrorBody | None) -> None:
    """It is not complete, although its final state cannot be read."""
    reader = PredictionReader(NO_PRIOR, None, lambda *_: None)
    reader.expect_stream()
    list(reader.feed(f"event: output\ndata: a\n\nevent: done\ndata: {last}\n\n".encode()))
    reader.lenient = True
    assert reader.ended
    assert reader.finished == (failure is None)
    reader.expect_state()
    list(reader.feed(b'{"id":"prediction","status":"failed"}'))
    list(reader.end())
    assert reader.failure == (failure or ErrorBody(""))


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
