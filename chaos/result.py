"""The result of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

from chaos.faults import Happened
from chaos.measure import Rescue
from chaos.plan import Plan
from chaos.verify import Verdict


@dataclass(slots=True)
class Result:
    """Measurements and verdict of a run."""

    plan: Plan
    verdict: Verdict
    happened: list[Happened]
    accepted: int
    refused: int
    retried: int
    disconnected: int
    readers: int
    resumes: int
    restarts: int
    self_restarts: int
    failed_starts: int
    hand_overs: list[Rescue]
    rescues: list[Rescue]
    seconds: float
    # Jobs whose engine had them before their claims were committed, and how many of those starts were thrown away.
    early_starts: int
    overtaken: int
    before: float | None
    after: float | None
    quiet_after_s: float
    # Events that a receiver of webhooks has got, how many were repeated, and the seconds from their jobs' ends.
    webhooks: int
    webhooks_repeated: int
    webhook_lags: list[float]
    histories: list[str] = field(default_factory=list)
