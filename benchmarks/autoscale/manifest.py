"""Parses a policy from Kubernetes manifests: a KEDA ScaledObject or a HorizontalPodAutoscaler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.autoscale.policy import DOWN, UP, Direction, Policy, Rate
from shared.domain.errors import HeadraceError

KINDS = ("ScaledObject", "HorizontalPodAutoscaler")


class ManifestError(HeadraceError):
    """A manifest has no suitable autoscaler, or a field of it is missing or invalid."""


def load(path: Path, name: str | None = None) -> Policy:
    """Load the policy of the autoscaler in a file or folder, by name if there are several.

    Raises:
        ManifestError: There is not exactly one, or a field is missing.
    """
    files = sorted(path.rglob("*.yaml")) if path.is_dir() else [path]
    found = [item for file in files for item in _autoscalers(file) if name in (None, item["metadata"]["name"])]
    if len(found) != 1:
        names = ", ".join(item["metadata"]["name"] for item in found) or "none"
        raise ManifestError(
            f"{path}: expected one {' or '.join(KINDS)}{f' named {name}' if name else ''}, found: {names}"
        )
    return parse(found[0])


def parse(manifest: Mapping[str, Any]) -> Policy:
    """Parse the policy of an autoscaler.

    Raises:
        ManifestError: A field is missing; the message names it.
    """
    try:
        spec = manifest["spec"]
        return _scaled_object(spec) if manifest["kind"] == "ScaledObject" else _hpa(spec)
    except (KeyError, IndexError) as missing:
        raise ManifestError(f"{manifest.get('kind')}: {missing.args[0]} is missing") from missing


def _autoscalers(file: Path) -> Iterator[dict[str, Any]]:
    for document in yaml.safe_load_all(file.read_text()):
        if isinstance(document, dict) and document.get("kind") in KINDS:
            yield document


def _scaled_object(spec: Mapping[str, Any]) -> Policy:
    trigger = spec["triggers"][0]
    if trigger.get("metricType", "AverageValue") != "AverageValue":
        raise ManifestError(f"metricType: must be AverageValue, got {trigger['metricType']}")
    behavior = spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", {}).get("behavior", {})
    return Policy(
        threshold=float(trigger["metadata"]["threshold"]),
        activation=float(trigger["metadata"].get("activationThreshold", 0)),
        min_replicas=int(spec.get("minReplicaCount", 0)),
        max_replicas=int(spec.get("maxReplicaCount", 100)),
        idle_replicas=spec.get("idleReplicaCount"),
        polling_s=int(spec.get("pollingInterval", 30)),
        cooldown_s=int(spec.get("cooldownPeriod", 300)),
        up=_direction(behavior.get("scaleUp", {}), UP),
        down=_direction(behavior.get("scaleDown", {}), DOWN),
    )


def _hpa(spec: Mapping[str, Any]) -> Policy:
    metric = spec["metrics"][0]
    target = metric[metric["type"].lower()]["target"]
    behavior = spec.get("behavior", {})
    return Policy(
        threshold=_quantity(str(target["averageValue"])),
        min_replicas=int(spec.get("minReplicas", 1)),
        max_replicas=int(spec["maxReplicas"]),
        keda=False,
        up=_direction(behavior.get("scaleUp", {}), UP),
        down=_direction(behavior.get("scaleDown", {}), DOWN),
    )


def _quantity(text: str) -> float:
    """Parse a Kubernetes quantity: `800m` is 0.8."""
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def _direction(spec: Mapping[str, Any], default: Direction) -> Direction:
    rates = tuple(
        Rate(item["type"], int(item["value"]), int(item["periodSeconds"])) for item in spec.get("policies", ())
    )
    return Direction(
        int(spec.get("stabilizationWindowSeconds", default.stabilization_s)),
        rates or default.rates,
        spec.get("selectPolicy", default.select),
    )
