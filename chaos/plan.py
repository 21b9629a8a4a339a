"""What a run is: how much load, which faults, how long they last."""

from __future__ import annotations

from dataclasses import dataclass

MODEL = "sim"


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. Times in seconds unless they say otherwise."""

    seed: int
    faults: tuple[str, ...]
    # Faults come for as long as there are jobs. None: each fault once, and jobs for as long as those last.
    jobs: int | None = 10_000
    quick: bool = False
    window_s: float = 20.0
    # Jobs that wait or run at any time: more than the workers' slots, so that throughput means something.
    outstanding: int = 140
    apis: int = 2
    workers: int = 3
    slots: int = 32
    ttft_ms: int = 20
    itl_ms: int = 20
    tokens: tuple[int, int] = (60, 240)
    readers: float = 0.2
    cancels: float = 0.03
    stops: float = 0.05
    max_attempts: int = 20

    @property
    def lease_s(self) -> float:
        return 2.0 if self.quick else 6.0

    @property
    def heartbeat_s(self) -> float:
        return 0.5 if self.quick else 2.0

    @property
    def frozen_s(self) -> float:
        """Longer than the lease, so that what is frozen wakes up as a zombie."""
        return 1.5 * self.lease_s

    @property
    def away_s(self) -> tuple[float, float]:
        """How long a server cannot be reached."""
        return (1.0, 2.0) if self.quick else (2.0, 10.0)

    @property
    def pause_s(self) -> tuple[float, float]:
        """Between two faults."""
        return (0.5, 1.0) if self.quick else (1.0, 6.0)

    @property
    def quiet_s(self) -> float:
        """How long the end of all jobs may take once the faults have stopped."""
        return 60.0 if self.quick else 180.0
