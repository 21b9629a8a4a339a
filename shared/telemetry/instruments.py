"""What a metric is here: defined once, with labels whose values are bounded, and served by the processes it is about.

A metric is not registered where it is defined. Each process serves those that are its own (`registry`), so that a
worker shows no zero for what only an API process can count.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nobody reads


class Exporter(StrEnum):
    """Which processes serve a metric."""

    API = "API"
    WORKER = "worker"


class Across(StrEnum):
    """How the values of several processes become one.

    `sum`: each process counts its own part. `max`: each process reads the same truth, the rows; a sum would count
    it once for each API process. `min`: one process that sees it badly is what matters.
    """

    SUM = "sum"
    MAX = "max"
    MIN = "min"


@dataclass(frozen=True, slots=True)
class Label:
    """A label. `values` are all that it can have; None: bounded by the code that sets it, as `bound` says."""

    name: str
    values: tuple[str, ...] | None = None
    bound: str = ""


@dataclass(frozen=True, slots=True)
class Definition:
    """A metric as Prometheus sees it: the name has its unit, and `_total` where it counts."""

    name: str
    kind: str
    labels: tuple[Label, ...]
    what: str
    exporters: tuple[Exporter, ...]
    across: Across
    # None: read at each scrape, see `Reading`.
    collector: Counter | Gauge | Histogram | WeightedHistogram | LoopCounter | None


DEFINITIONS: list[Definition] = []


@dataclass(frozen=True, slots=True)
class Reading:
    """A metric that is no object of its own: its value is read when it is asked for."""

    name: str
    what: str
    labels: tuple[str, ...]
    counts: bool

    def family(self, values: Iterable[tuple[Sequence[str], float]]) -> Metric:
        """The metric with these values: the labels' values, and the number."""
        family = (CounterMetricFamily if self.counts else GaugeMetricFamily)(self.name, self.what, labels=self.labels)
        for labels, value in values:
            family.add_metric(labels, value)
        return family


class WeightedHistogram(Collector):
    """A histogram that takes many equal values at once, from one thread, for less than a microsecond.

    prometheus_client's takes one value at a time and locks for it, which at each token would cost as much as to relay
    the token.
    """

    def __init__(self, name: str, what: str, label: str, buckets: Sequence[float]) -> None:
        self.name = name
        self._what = what
        self._label = label
        self.upper_bounds = (*buckets, float("inf"))
        self._children: dict[str, WeightedChild] = {}

    def labels(self, value: str) -> WeightedChild:
        """The histogram of one value of the label."""
        child = self._children.get(value)
        if child is None:
            child = self._children[value] = WeightedChild(self.upper_bounds)
        return child

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self.name, self._what, labels=[self._label])
        for value, child in list(self._children.items()):
            bounds = map(floatToGoString, self.upper_bounds)
            family.add_metric(
                [value], list(zip(bounds, itertools.accumulate(child.counts), strict=True)), sum_value=child.sum
            )
        return [family]


class WeightedChild:
    """One labelled histogram."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * len(bounds)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self._bounds, value)] += times
        self.sum += value * times


class LoopCounter(Collector):
    """A counter that is counted from one thread, at each flush: without a lock."""

    def __init__(self, name: str, what: str, label: str) -> None:
        self.name = name
        self._what = what
        self._label = label
        self._children: dict[str, LoopChild] = {}

    def labels(self, value: str) -> LoopChild:
        """The counter of one value of the label."""
        child = self._children.get(value)
        if child is None:
            child = self._children[value] = LoopChild()
        return child

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(self.name, self._what, labels=[self._label])
        for value, child in list(self._children.items()):
            family.add_metric([value], child.value)
        return [family]


class LoopChild:
    """One labelled counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, count: int) -> None:
        self.value += count


def counter(name: str, what: str, labels: Sequence[Label], *exporters: Exporter) -> Counter:
    """A counter; its name ends in `_total`."""
    made = Counter(name, what, [label.name for label in labels], registry=None)
    DEFINITIONS.append(Definition(name, "counter", tuple(labels), what, exporters, Across.SUM, made))
    return made


def loop_counter(name: str, what: str, label: Label, *exporters: Exporter) -> LoopCounter:
    """A counter for what happens at each flush; its name ends in `_total`."""
    made = LoopCounter(name, what, label.name)
    DEFINITIONS.append(Definition(name, "counter", (label,), what, exporters, Across.SUM, made))
    return made


def gauge(name: str, what: str, labels: Sequence[Label], *exporters: Exporter) -> Gauge:
    """A gauge of which each process has its own part."""
    made = Gauge(name, what, [label.name for label in labels], registry=None)
    DEFINITIONS.append(Definition(name, "gauge", tuple(labels), what, exporters, Across.SUM, made))
    return made


def histogram(
    name: str, what: str, labels: Sequence[Label], buckets: Sequence[float], *exporters: Exporter
) -> Histogram:
    """A histogram in seconds."""
    made = Histogram(name, what, [label.name for label in labels], buckets=buckets, registry=None)
    DEFINITIONS.append(Definition(name, "histogram", tuple(labels), what, exporters, Across.SUM, made))
    return made


def weighted_histogram(
    name: str, what: str, label: Label, buckets: Sequence[float], *exporters: Exporter
) -> WeightedHistogram:
    """A histogram for what happens at each token."""
    made = WeightedHistogram(name, what, label.name, buckets)
    DEFINITIONS.append(Definition(name, "histogram", (label,), what, exporters, Across.SUM, made))
    return made


def reading(
    name: str, what: str, labels: Sequence[Label], *exporters: Exporter, across: Across = Across.SUM
) -> Reading:
    """A gauge, or with a name in `_total` a counter, that is read at each scrape."""
    counts = name.endswith("_total")
    kind = "counter" if counts else "gauge"
    DEFINITIONS.append(Definition(name, kind, tuple(labels), what, exporters, across, None))
    return Reading(name, what, tuple(label.name for label in labels), counts)


def registry(exporter: Exporter, *readings: Collector) -> CollectorRegistry:
    """All that a process serves: its metrics, what is read at each scrape, and the Python process's own."""
    made = CollectorRegistry()
    for definition in DEFINITIONS:
        if exporter in definition.exporters and definition.collector is not None:
            made.register(definition.collector)
    for one in (*readings, REGISTRY):
        made.register(one)
    return made


def start_at_zero(exporter: Exporter, model: Label, models: Iterable[str]) -> None:
    """Make the series of all counters that can be known: of one that begins at 1, `rate` misses the 1."""
    known = tuple(models)
    for definition in DEFINITIONS:
        if exporter in definition.exporters and isinstance(definition.collector, Counter | LoopCounter):
            values = [known if label is model else label.values for label in definition.labels]
            if values and all(value is not None for value in values):
                for combination in itertools.product(*(value or () for value in values)):
                    definition.collector.labels(*combination)
