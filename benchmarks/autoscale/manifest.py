"""Reads a policy out of the YAML that a cluster is given: a ScaledObject of KEDA's, or a HorizontalPodAutoscaler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.autoscale.policy import DOWN, UP, Direction, Policy, Rate
from shared.domain.errors import HeadraceError

KINDS = ("ScaledObject", "HorizontalPodAutoscaler")


class ManifestError(HeadraceError):
    """A manifest does not say what an autoscaler needs."""


def load(path: Path, name: str | None = None) -> Policy:
    """The policy of the only autoscaler in a file or in a folder's files, or of the one with that name.

    Raises:
        ManifestError: there is none, there are several, or a field is not there.
    """
    files = sorted(path.rglob("*.yaml")) if path.is_dir() else [path]
    found = [item for file in files for item in _autoscalers(file) if name in (None, item["metadata"]["name"])]
    if len(found) != 1:
        names = ", ".join(item["metadata"]["name"] for item in found) or "none"
        raise ManifestError(
            f"{path}: one of {' or '.join(KINDS)} is needed{f' called {name}' if name else ''}: {names}"
        )
    return parse(found[0])


def parse(manifest: Mapping[str, Any]) -> Policy:
    """A manifest's policy.

    Raises:
        ManifestError: names the field that is missing.
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
    """Kubernetes' `800m` is 0.8."""
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def _direction(said: Mapping[str, Any], default: Direction) -> Direction:
    rates = tuple(
        Rate(item["type"], int(item["value"]), int(item["periodSeconds"])) for item in said.get("policies", ())
    )
    return Direction(
        int(said.get("stabilizationWindowSeconds", default.stabilization_s)),
        rates or default.rates,
        said.get("selectPolicy", default.select),
    )
