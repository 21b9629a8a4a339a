"""The settings of an autoscaler."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Rate:
    """A scaling policy: at most `value` pods, or percent of the pods, per period."""

    kind: str  # Pods or Percent
    value: int
    period_s: int


@dataclass(frozen=True, slots=True)
class Direction:
    """Limits for one scaling direction. `select`: Max (the policy with the largest change), Min, or Disabled."""

    stabilization_s: int
    rates: tuple[Rate, ...]
    select: str = "Max"


# Kubernetes' defaults: horizontal pod autoscaling, "Default Behavior".
UP = Direction(0, (Rate("Percent", 100, 15), Rate("Pods", 4, 15)))
DOWN = Direction(300, (Rate("Percent", 100, 15),))


@dataclass(frozen=True, slots=True)
class Policy:
    """A KEDA ScaledObject with its HPA, or an HPA alone (`keda` is False).

    `threshold` is the target metric value per pod. Times are in seconds.
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
