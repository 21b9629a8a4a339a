"""The interface between a worker and its engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from shared.domain.engine_info import EngineInfo
from shared.domain.errors import ErrorCode, HeadraceError
from shared.domain.events import Delta, UpstreamState
from shared.domain.job import Usage
from shared.domain.request import GenerateRequest
from workers.engines.gate import Gate
from workers.engines.resume import Resume


class EngineError(HeadraceError):
    """The engine could not run this request but can run others. `code` is the job's error code."""

    code = ErrorCode.ENGINE_ERROR


class UpstreamError(EngineError):
    """The upstream could not run this request."""

    code = ErrorCode.UPSTREAM_ERROR


class CannotContinue(EngineError):
    """The upstream can neither resume nor continue an interrupted answer."""

    code = ErrorCode.CANNOT_CONTINUE


class BusyReason(StrEnum):
    """Why an upstream could not run a request yet."""

    RATE_LIMIT = "rate_limit"
    SERVER_ERROR = "server_error"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    BROKEN = "broken"


class UpstreamBusy(UpstreamError):
    """The upstream could not run this request, or say more about one that it runs, but may later.

    The job is deferred, in all for `max_wait_s` seconds at most. If it cannot wait, it fails with this error.
    """

    def __init__(
        self, message: str, reason: BusyReason, *, retry_after_s: float | None = None, max_wait_s: float
    ) -> None:
        """`retry_after_s`: the delay that the upstream named."""
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.max_wait_s = max_wait_s


class EngineDead(HeadraceError):
    """The engine has died and runs no more requests."""


@dataclass(frozen=True, slots=True)
class PromptInfo:
    """Number of tokens in the prompt, and how many of them were in the prefix cache."""

    prompt_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class CacheStats:
    """A KV cache: the fraction in use (0 to 1), and counts since the engine was first started."""

    usage: float
    preemptions: int
    queried_tokens: int
    hit_tokens: int


@dataclass(frozen=True, slots=True)
class DraftStats:
    """Speculative decoding: tokens that were drafted, and those that the model accepted, since the first start."""

    drafted_tokens: int
    accepted_tokens: int


@dataclass(frozen=True, slots=True)
class Restarted:
    """Everything emitted so far is invalid; the answer follows from its start."""


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The upstream has ended the request of the last `UpstreamState`: there is nothing to cancel.

    Its output may not have been read to the end, and a later attempt may read it again.
    """


# What an engine yields for a request.
EngineItem = Delta | PromptInfo | Restarted | RunEnded | UpstreamState | Usage


@dataclass(frozen=True, slots=True)
class ReportedContext:
    """The context length that an upstream reports, by its `Spec.context_source`.

    `tokens`: None if it reports none any more. `read_at`: when it was read, by the monotonic clock. `use` notes that
    somebody needs it: it is read again if it is old.
    """

    source: str
    tokens: int | None
    read_at: float
    use: Callable[[], None] = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Requests in the engine, how many of them it has queued, its KV cache if it has one, and drafts if it speculates.

    `endpoints`: by name, whether an endpoint of its upstream is available. `context`: what the upstream reports.
    `info`: what the engine runs with; None before its first start.
    """

    requests: int
    waiting: int = 0
    cache: CacheStats | None = None
    drafts: DraftStats | None = None
    endpoints: Mapping[str, bool] = field(default_factory=dict)
    context: ReportedContext | None = None
    info: EngineInfo | None = None


@dataclass(frozen=True, slots=True)
class Prior:
    """What earlier attempts emitted; the answer continues after it.

    `comparable`: False if it was generated with a different fingerprint. A regenerated answer must not be compared with
    it then: the engine yields `Restarted` unless it resumes exactly.

    `upstream` is the request that generated it, and `cursor` the upstream's position after the last of `deltas`. There
    may be such a request although there are no deltas.
    """

    deltas: Sequence[Delta] = ()
    comparable: bool = True
    upstream: UpstreamState | None = None
    cursor: int | str | None = None


NO_PRIOR = Prior()


class ManagedEngine(Protocol):
    """What supervises an engine needs of it."""

    async def start(self) -> None:
        """Load the model. Raises an exception if that fails."""

    async def stop(self) -> None:
        """Release all resources. The engine can be started again."""

    @property
    def dead(self) -> bool:
        """Whether it has died. It can be stopped and started again."""

    def stats(self) -> EngineStats:
        """Its current load."""


class PrefixEngine(Protocol):
    """An engine that reuses the prefixes of earlier prompts, and can compute some before requests need them."""

    @property
    def prefix_room(self) -> int:
        """Number of tokens that its cache holds."""

    async def prefix(self, requests: Sequence[GenerateRequest]) -> Sequence[int]:
        """The tokens that the prompts of all these requests begin with.

        Raises:
            InvalidRequest: the engine cannot render a request, or it does not fit the context.
        """

    async def prefill(self, request_id: str, tokens: Sequence[int], salt: str) -> int:
        """Compute a prefix for requests with this salt; returns how many of its tokens were in the cache already.

        Raises:
            InvalidRequest: the prefix does not fit the context.
            EngineError: this prefix failed.
            EngineDead: the engine has died.
        """


class AdapterEngine(Protocol):
    """An engine that runs adapters of its model: `GenerateRequest.adapter` names the one that generates the answer."""

    @property
    def adapter_fingerprints(self) -> Mapping[str, str]:
        """By the adapter's name, as `Engine.fingerprint`; available once the engine has started."""


class Engine(ManagedEngine, Protocol):
    """Generates answers to many requests concurrently, on the event loop that called `start`."""

    @property
    def slots(self) -> int:
        """Number of requests that it runs concurrently."""

    @property
    def gate(self) -> Gate | None:
        """What holds back jobs before their claim, beside the number of slots; None: nothing does."""

    @property
    def fingerprint(self) -> str:
        """Identifies how the model is run; available once the engine has started.

        Engines with the same fingerprint are expected to generate the same tokens for a request.
        """

    def take_over(self, earlier: Engine) -> None:
        """Take over from an engine of an earlier version of the entry what it knows about the upstream.

        Both engines are started; the earlier one gets no new requests.
        """

    def resume_mode(self, request: GenerateRequest, prior: Prior = NO_PRIOR) -> Resume:
        """How the request can be resumed if it is interrupted, or after `prior`.

        If that fails, `generate` raises `CannotContinue`, or yields `Restarted` and the whole answer.
        """

    def generate(
        self, request_id: str, request: GenerateRequest, prior: Prior = NO_PRIOR
    ) -> AsyncGenerator[EngineItem, None]:
        """Yield a `PromptInfo`, then deltas; the last delta of each choice has a finish reason.

        An engine whose upstream reports the usage yields no `PromptInfo` but ends with that `Usage`, which takes
        precedence over the sum of the deltas. An engine whose upstream can resume a request, or can be told to cancel
        it, yields its `UpstreamState` before the first delta.

        Closing the generator, or cancelling the task that iterates over it, aborts the request and returns after the
        engine has freed it.

        `request_id`: the job's id, a dash, and the attempt number.

        Raises:
            InvalidRequest: no engine of this model can run the request.
            CannotContinue: the answer cannot be continued after the deltas of `prior`; nothing was emitted.
            EngineError: this request failed.
            UpstreamBusy: this request failed before its first token, or after its `UpstreamState`, and can be run or
                resumed later.
            EngineDead: the engine has died.
        """

    async def cancel(self, state: UpstreamState) -> None:
        """Tell the upstream to stop a request, because nothing will resume it. Returns if it does not run any more.

        Raises any exception if this or another worker of the model may succeed later.
        """
