"""What the load generator is told, and what it answers: both are JSON lines between two processes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import orjson

NUMBER = "{number}"
ID = "{id}"


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. `{number}` in a body, and `{id}` in a path, differ from request to request.

    `load` sends `requests` of them, or as many as go out in `seconds`: closed loop with `concurrency` connections,
    or, with `rate`, so many a second whatever the answers take (times count from when a request was due then).
    `hold` opens the stream of each of `ids` and keeps it for `seconds`. `cancel` submits jobs at `rate` and cancels
    each in mid-stream.
    """

    port: int
    path: str
    kind: Literal["load", "hold", "cancel"] = "load"
    method: str = "POST"
    body: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    concurrency: int = 1
    rate: float | None = None
    requests: int | None = None
    seconds: float | None = None
    ids: list[str] = field(default_factory=list)
    # The first request's number: with another one in each run, no prompt is in a prefix cache.
    first_number: int = 0
    # `load`: answer with the jobs' ids.
    collect: bool = False
    # Closed loop: the connections' first requests are spread over so long. Streams of one length that begin together
    # stay together, and would each meet all others' submits.
    spread_s: float = 0.0
    # Requests that are sent before and not counted.
    warm_up: int = 0
    # `hold`: how often the server promised to send something.
    heartbeat_s: float = 15.0
    # A run that takes longer has failed.
    patience_s: float = 600.0

    def dump(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def load(cls, line: bytes) -> Plan:
        return cls(**orjson.loads(line))


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of one kind of time, in milliseconds."""

    count: int = 0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    worst: float = 0.0


@dataclass(frozen=True, slots=True)
class Summary:
    """What came of a run. Times are milliseconds, `seconds` is from the first request to the last answer."""

    requests: int
    failed: int
    first_failure: str
    seconds: float
    tokens: int
    first: Spread
    whole: Spread
    gap: Spread
    # `hold`: how late heartbeats came; the streams that are still open at the end.
    late: Spread = field(default_factory=Spread)
    held: int = 0
    cpu_s: float = 0.0
    ids: list[str] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def dump(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def load(cls, line: bytes) -> Summary:
        fields = orjson.loads(line)
        for name in ("first", "whole", "gap", "late"):
            fields[name] = Spread(**fields[name])
        return cls(**fields)
