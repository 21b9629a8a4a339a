"""An answer whose prompt's log probabilities may be incomplete starts again."""

from __future__ import annotations

import pytest

from shared.domain.events import Delta
from shared.domain.request import GenerateRequest, Sampling
from workers.engines.prompt_logprobs import may_be_incomplete

ECHO = GenerateRequest(prompt="x", echo=True, logprobs=2, sampling=Sampling(n=2))
PROMPT = GenerateRequest(prompt="x", prompt_logprobs=2, sampling=Sampling(n=2))
PART = Delta(0, logprobs=(b"[]",))


@pytest.mark.parametrize(
    ("request_", "prior", "incomplete"),
    [
        (ECHO, [], False),
        (ECHO, [PART], True),
        (ECHO, [Delta(0, "x")], True),
        (ECHO, [Delta(0, "x"), Delta(1)], True),
        (ECHO, [Delta(0, "x"), Delta(1, "x")], False),
        (PROMPT, [Delta(0, prompt_logprobs=(b"null",))], True),
        (PROMPT, [Delta(0, "", (1,))], False),
        (GenerateRequest(prompt="x", echo=True), [Delta(0)], False),
        (GenerateRequest(prompt="x", logprobs=2), [Delta(0)], False),
    ],
)
def test_incomplete(request_: GenerateRequest, prior: list[Delta], incomplete: bool) -> None:
    assert may_be_incomplete(request_, prior) is incomplete
