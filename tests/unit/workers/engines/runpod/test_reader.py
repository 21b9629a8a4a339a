"""States of jobs that are not quite JSON."""

from __future__ import annotations

from functools import partial

import pytest

from shared.domain.events import Delta
from workers.engines.base import NO_PRIOR
from workers.engines.runpod.output import OutputParser
from workers.engines.runpod.reader import JobReader


@pytest.mark.parametrize(
    ("member", "text"),
    [
        (rb'"output":["a\ud83d"]', "a\ufffd"),
        (rb'"output":["a\ud83d","\ude00b"]', "a😀b"),
        (rb'"output":[{"text":"a\ud83d"},{"text":"\ude00b"}]', "a😀b"),
        (rb'"output":[{"choices":[{"tokens":["a\ud83d","\ude00b"]}]}]', "a😀b"),
        (
            rb'"output":["data: {\"choices\":[{\"delta\":{\"content\":\"a\ud83d","\ude00b\"}}]}\n\ndata: [DONE]\n\n"]',
            "a😀b",
        ),
        (rb'"output":[{"choices":[{"delta":{"content":"a\ud83d"}}]},"data: [DONE]\n\n"]', "a\ufffd"),
        (b'"output":["a"],"score":NaN', "a"),
    ],
)
def test_a_state_with_what_json_has_not(member: bytes, text: str) -> None:
    """Workers that Python or JavaScript wrote send NaN and halves of characters."""
    parser = partial(OutputParser, 1, logprobs=False, named_tool=False, max_tokens=None)
    reader = JobReader(NO_PRIOR, parser, lambda *_: None)
    reader.expect("status")
    list(reader.feed(b'{"id":"job","status":"COMPLETED",' + member + b"}"))
    deltas = [item for item in reader.end() if isinstance(item, Delta)]
    assert ("".join(delta.text for delta in deltas), reader.failure) == (text, None)
