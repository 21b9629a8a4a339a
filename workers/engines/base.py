"""What a worker asks of an engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from shared.domain.errors import ErrorCode, HeadraceError
from shared.domain.events import Delta
from shared.domain.job import Usage
from shared.domain.request import GenerateRequest


class EngineError(HeadraceError):
    """The engine could not run this request; it can run others. `code` is the job's error code."""

    code = ErrorCode.ENGINE_ERROR


class UpstreamError(EngineError):
    """The server that this engine relays to could not run this request."""

    code = ErrorCode.UPSTREAM_ERROR


class EngineDead(HeadraceError):
    """The engine has ended and runs nothing any more."""


class Resume(IntEnum):
    """How an interrupted request can be resumed; higher is cheaper.

    `NONE`: only from the start, as a new answer. `REGENERATE`: from the start, compared with what was emitted.
    `EXACT`: after the last emitted token.
    """

    NONE = 0
    REGENERATE = 1
    EXACT = 2


@dataclass(frozen=True, slots=True)
class PromptInfo:
    """What the engine knows of the prompt once it has been prefilled: tokens, and those of them cached."""

    prompt_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class CacheStats:
    """A KV cache: the part in use (0 to 1), and counts since the engine's first start."""

    usage: float
    preemptions: int
    queried_tokens: int
    hit_tokens: int


@dataclass(frozen=True, slots=True)
class Restarted:
    """What was told so far does not hold: the answer comes again, from its beginning."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Requests in the engine, running or waiting inside it, those of them that wait, and its KV cache if it has one."""

    requests: int
    waiting: int = 0
    cache: CacheStats | None = None


class Engine(Protocol):
    """Generates many requests at once, on the event loop that `start` was awaited on."""

    @property
    def slots(self) -> int:
        """Requests that it runs at once."""

    @property
    def fingerprint(self) -> str:
        """Identifies how the model is run; known once the engine has started.

        Engines with the same fingerprint are expected to generate the same tokens for the same request.
        """

    async def start(self) -> None:
        """Load the model. Raises where that fails."""

    async def stop(self) -> None:
        """Free everything. It may be started again afterwards."""

    @property
    def dead(self) -> bool:
        """Whether it has ended by itself. It can be stopped and started again."""

    def resume_mode(self, request: GenerateRequest) -> Resume:
        """How a request that was cut can go on after its last token, its text being as if uncut.

        Where that turns out not to be so, `generate` yields `Restarted`, and then all of it.
        """

    def generate(
        self, request_id: str, request: GenerateRequest, prior: Sequence[Delta] = ()
    ) -> AsyncGenerator[Delta | PromptInfo | Restarted | Usage, None]:
        """Yield a `PromptInfo`, then deltas; the last delta of each choice has a finish reason.

        `request_id` is the job's id, a dash, and the number of the attempt.

        An engine that is told by somebody else what was used yields no `PromptInfo`, and that `Usage` last: it goes
        before what the deltas add up to.

        `prior` is what earlier attempts made, where it goes on. Closing the generator, or cancelling
        the task that iterates it, aborts the request and returns once the engine has freed it.

        Raises:
            InvalidRequest: the request can never run.
            EngineError: this request failed.
            EngineDead: the engine has ended.
        """

    def stats(self) -> EngineStats: ...
