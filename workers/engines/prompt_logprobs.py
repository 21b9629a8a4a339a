"""The log probabilities of a prompt, which an engine emits in many deltas before the first token."""

from __future__ import annotations

from collections.abc import Sequence

from shared.domain.events import Delta
from shared.domain.request import GenerateRequest

# Entries in one delta: they are encoded in one step of the event loop.
ENTRIES = 64


def may_be_incomplete(request: GenerateRequest, prior: Sequence[Delta]) -> bool:
    """Whether earlier attempts may have emitted only a part of them.

    The text of an echoed prompt comes with the last of its log probabilities.
    """
    echoes = request.echo and request.logprobs is not None
    if not prior or not (echoes or request.prompt_logprobs is not None):
        return False
    complete = {delta.index for delta in prior if delta.text or delta.tokens or delta.finish_reason}
    return not complete.issuperset(range(request.sampling.n if echoes else 1))
