"""The log probabilities of a prompt, which an engine emits in many deltas before the first token."""

from __future__ import annotations

from collections.abc import Sequence

from shared.domain.events import Delta
from shared.domain.request import GenerateRequest

# Entries in one delta: they are encoded in one step of the event loop.
ENTRIES = 64


def may_be_incomplete(request: GenerateRequest, prior: Sequence[Delta]) -> bool:
    """Whether earlier attempts may have emitted only a part of them: a choice has no token yet."""
    if request.prompt_logprobs is None and not (request.echo and request.logprobs is not None):
        return False
    return bool(prior) and len({delta.index for delta in prior if delta.tokens}) < request.sampling.n
