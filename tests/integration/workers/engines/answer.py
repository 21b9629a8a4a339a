"""What an engine that can be resumed emits."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from shared.domain.events import Delta, UpstreamState
from shared.domain.job import Usage
from shared.domain.request import GenerateRequest, Message, Sampling
from workers.engines.base import NO_PRIOR, Prior
from workers.engines.upstream.engine import UpstreamEngine

ASK = GenerateRequest(messages=[Message(role="user", content="Hello")], sampling=Sampling(max_tokens=50))


class Answer:
    """The output of one attempt, and what the next one gets from it."""

    def __init__(self) -> None:
        self.deltas: list[Delta] = []
        self.state: UpstreamState | None = None
        self.usage: Usage | None = None

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def reasons(self) -> list[str]:
        return [delta.finish_reason for delta in self.deltas if delta.finish_reason]

    @property
    def cursor(self) -> int | str | None:
        return next((delta.cursor for delta in reversed(self.deltas) if delta.cursor is not None), None)

    @property
    def prior(self) -> Prior:
        return Prior(self.deltas, True, self.state, self.cursor)

    async def take(self, engine: UpstreamEngine, request: GenerateRequest = ASK, prior: Prior = NO_PRIOR) -> Answer:
        """The rest of an answer."""
        async with aclosing(engine.generate("job-1", request, prior)) as items:
            async for item in items:
                self.add(item)
        return self

    async def take_text(self, engine: UpstreamEngine, characters: int) -> Answer:
        """The beginning of an answer, of so many characters or more."""
        async with aclosing(engine.generate("job-1", ASK)) as items:
            async for item in items:
                self.add(item)
                if len(self.text) >= characters:
                    break
        return self

    def add(self, item: Any) -> None:
        match item:
            case Delta():
                self.deltas.append(item)
            case UpstreamState():
                assert not self.deltas
                self.state = item
            case Usage():
                self.usage = item
