"""JSON Schemas of a ScaledObject and its Prometheus trigger, as KEDA's documentation describes them.

Sources: keda.sh/docs/latest/reference/scaledobject-spec and keda.sh/docs/latest/scalers/prometheus, read for 2.22.
They are needed because kubernetes-validate knows only Kubernetes' own kinds. Fields that no manifest uses are omitted.
"""

from __future__ import annotations

from typing import Any


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


COUNT = {"type": "integer", "minimum": 0}
# The metadata of a trigger maps strings to strings; numbers are strings too.
NUMBER = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?$"}
FLAG = {"enum": ["true", "false"]}

PROMETHEUS = _object(
    ["serverAddress", "query", "threshold"],
    serverAddress={"type": "string", "pattern": "^https?://"},
    query={"type": "string", "minLength": 1},
    threshold=NUMBER,
    activationThreshold=NUMBER,
    ignoreNullValues=FLAG,
    unsafeSsl=FLAG,
    namespace={"type": "string"},
    customHeaders={"type": "string"},
    queryParameters={"type": "string"},
    timeout=NUMBER,
)

SCALED_OBJECT = _object(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "keda.sh/v1alpha1"},
    kind={"const": "ScaledObject"},
    metadata={"type": "object", "required": ["name"]},
    spec=_object(
        ["scaleTargetRef", "triggers"],
        scaleTargetRef=_object(
            ["name"],
            name={"type": "string"},
            kind={"type": "string"},
            apiVersion={"type": "string"},
            envSourceContainerName={"type": "string"},
        ),
        pollingInterval=COUNT,
        cooldownPeriod=COUNT,
        initialCooldownPeriod=COUNT,
        idleReplicaCount=COUNT,
        minReplicaCount=COUNT,
        maxReplicaCount=COUNT,
        fallback=_object(
            ["failureThreshold", "replicas"],
            failureThreshold=COUNT,
            replicas=COUNT,
            behavior={"enum": ["static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"]},
        ),
        advanced=_object(
            [],
            restoreToOriginalReplicaCount={"type": "boolean"},
            # `behavior` belongs to Kubernetes' autoscaling/v2: a test validates it with kubernetes-validate.
            horizontalPodAutoscalerConfig=_object([], name={"type": "string"}, behavior={"type": "object"}),
        ),
        triggers={
            "type": "array",
            "minItems": 1,
            "items": _object(
                ["type", "metadata"],
                type={"const": "prometheus"},
                name={"type": "string"},
                # `fallback` works with AverageValue only.
                metricType={"const": "AverageValue"},
                useCachedMetrics={"type": "boolean"},
                metadata=PROMETHEUS,
            ),
        },
    ),
)
