"""What an autoscaler was told."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Rate:
    """A scaling policy: so many pods, or so many percent of the pods, in a period of seconds."""

    kind: str  # Pods or Percent
    value: int
    period_s: int


@dataclass(frozen=True, slots=True)
class Direction:
    """How fast one direction may go. `select`: Max (the policy that changes most), Min, or Disabled."""

    stabilization_s: int
    rates: tuple[Rate, ...]
    select: str = "Max"


# Kubernetes' defaults: horizontal pod autoscaling, "Default Behavior".
UP = Direction(0, (Rate("Percent", 100, 15), Rate("Pods", 4, 15)))
DOWN = Direction(300, (Rate("Percent", 100, 15),))


@dataclass(frozen=True, slots=True)
class Policy:
    """A ScaledObject with the HPA that KEDA makes of it, or an HPA alone (`keda` is False).

    `threshold` is what one pod is to have of the metric (an average value). Times are seconds.
    """

    threshold: float
    min_replicas: int
    max_replicas: int
    keda: bool = True
    activation: float = 0.0
    polling_s: int = 30
    cooldown_s: int = 300
    idle_replicas: int | None = None
    up: Direction = field(default=UP)
    down: Direction = field(default=DOWN)
