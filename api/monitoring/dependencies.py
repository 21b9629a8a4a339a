"""FastAPI dependencies of monitoring."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from prometheus_client import CollectorRegistry

from api.http.dependencies import resource
from api.monitoring.queue_metrics import QueueMetrics
from api.monitoring.readiness import ReadinessCheck

CurrentMetrics = Annotated[CollectorRegistry, Depends(resource(CollectorRegistry))]
CurrentQueueMetrics = Annotated[QueueMetrics, Depends(resource(QueueMetrics))]
CurrentReadiness = Annotated[ReadinessCheck, Depends(resource(ReadinessCheck))]
