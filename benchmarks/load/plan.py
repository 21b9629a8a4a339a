"""Input and output of the load generator, exchanged as JSON lines between two processes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import orjson

NUMBER = "{number}"
ID = "{id}"


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. `{number}` in the body and `{id}` in the path are replaced for each request.

    `load` sends `requests` requests, or as many as possible in `seconds`: in a closed loop over `concurrency`
    connections or, with `rate`, in an open loop of `rate` per second, timed from when each request was due.
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
    # The first request's number. Different in each run, so that no prompt hits a prefix cache.
    first_number: int = 0
    # `load`: include the job ids in the summary.
    collect: bool = False
    # Closed loop: the first requests are spread over this time. Streams of equal length that start together would
    # stay synchronised, and each would compete with the submits of all others.
    spread_s: float = 0.0
    # Requests sent before the run and not counted.
    warm_up: int = 0
    # `hold`: the heartbeat interval of the server.
    heartbeat_s: float = 15.0
    # The limit for the run, which fails if it takes longer.
    timeout_s: float = 600.0

    def dump(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def load(cls, line: bytes) -> Plan:
        return cls(**orjson.loads(line))


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of a duration, in milliseconds."""

    count: int = 0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    worst: float = 0.0


@dataclass(frozen=True, slots=True)
class Summary:
    """Result of a run. Spreads are in milliseconds; `seconds` is from the first request to the last response."""

    requests: int
    failed: int
    first_failure: str
    seconds: float
    tokens: int
    first: Spread
    latency: Spread
    gap: Spread
    # `hold`: delays of heartbeats, and the number of streams still open at the end.
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
        for name in ("first", "latency", "gap", "late"):
            fields[name] = Spread(**fields[name])
        return cls(**fields)
