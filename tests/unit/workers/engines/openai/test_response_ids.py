"""The ids of responses, which become parts of paths and are stored."""

from __future__ import annotations

import orjson
import pytest

from shared.domain.events import UpstreamState
from workers.engines.base import NO_PRIOR
from workers.engines.openai.responses.stream import ResponseParser


def states(response_id: object) -> list[UpstreamState]:
    parser = ResponseParser(NO_PRIOR, logprobs=False, reasoning=True, provider=None)
    response = {"id": response_id, "status": "queued", "background": True}
    event = {"type": "response.created", "sequence_number": 0, "response": response}
    items = list(parser.feed(b"data: %b\n\n" % orjson.dumps(event)))
    assert parser.failure is None, "the answer can be read, but not resumed"
    return [item for item in items if isinstance(item, UpstreamState)]


@pytest.mark.parametrize(
    "response_id",
    ["resp_0123", "resp-a.b:c", "6f1c7c1e-0000-4000-8000-000000000000", "resp_" + "bGl0ZWxsbTo=" * 40, "a/b?c#d%2e"],
)
def test_ids_of_servers_and_gateways(response_id: str) -> None:
    assert states(response_id) == [UpstreamState(response_id)]


@pytest.mark.parametrize(
    "response_id",
    ["", ".", "..", "resp_\0x", "resp 1", "resp_\n", "resp_\x7f", "r\u00e9sp", "x" * 1025, 7, None, ["x"]],
)
def test_what_is_no_id_is_not_kept(response_id: object) -> None:
    assert states(response_id) == []
