"""Configuration of a run: load, faults and durations."""

from __future__ import annotations

from dataclasses import dataclass

MODEL = "sim"


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. Times are in seconds unless the name has another unit."""

    seed: int
    faults: tuple[str, ...]
    # Faults are injected while jobs are left. None: inject each fault once, submitting jobs until the last is over.
    jobs: int | None = 10_000
    quick: bool = False
    window_s: float = 20.0
    # Outstanding jobs: more than the workers' slots, so that throughput is limited by the workers.
    outstanding: int = 140
    apis: int = 2
    workers: int = 3
    slots: int = 32
    ttft_ms: int = 20
    itl_ms: int = 20
    tokens: tuple[int, int] = (60, 240)
    readers: float = 0.2
    cancels: float = 0.03
    # The share of submits that are repeated with their idempotency key, and of jobs whose stream is left in the middle.
    retries: float = 0.1
    disconnects: float = 0.3
    stops: float = 0.05
    # The share of requests with a prompt of 1 MB, or with 16 choices and their log probabilities.
    heavy: float = 0.02
    max_attempts: int = 20

    @property
    def lease_s(self) -> float:
        return 2.0 if self.quick else 6.0

    @property
    def heartbeat_s(self) -> float:
        return 0.5 if self.quick else 2.0

    @property
    def freeze_s(self) -> float:
        """Duration of a freeze: longer than the lease, so that a worker has lost its jobs when it wakes up."""
        return 1.5 * self.lease_s

    @property
    def outage_s(self) -> tuple[float, float]:
        """Range of the durations of server outages."""
        return (1.0, 2.0) if self.quick else (2.0, 10.0)

    @property
    def pause_s(self) -> tuple[float, float]:
        """Range of the pauses between faults."""
        return (0.5, 1.0) if self.quick else (1.0, 6.0)

    @property
    def quiet_s(self) -> float:
        """Limit for all jobs to end after the last fault."""
        return 60.0 if self.quick else 180.0
