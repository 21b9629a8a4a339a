"""The instruments that metrics are made of, and the set of them in one process.

Each process exports only its own metrics, so that a worker shows no zeros for HTTP requests.
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

disable_created_metrics()  # type: ignore[no-untyped-call]  # an unused second series for each counter


class Exporter(StrEnum):
    """The kinds of processes that export metrics."""

    API = "API"
    WORKER = "worker"


class Aggregation(StrEnum):
    """How the values of several processes are combined.

    `sum`: each process counts its own work. `max`: each process reads the same rows, so a sum would count them once
    per API process. `min`: a failure that one process sees matters.
    """

    SUM = "sum"
    MAX = "max"
    MIN = "min"


@dataclass(frozen=True, slots=True)
class Label:
    """A label. `values` lists its possible values; if None, `bound` says what limits them."""

    name: str
    values: tuple[str, ...] | None = None
    bound: str = ""


@dataclass(frozen=True, slots=True)
class Definition:
    """The definition of a metric, as exported to Prometheus and listed in docs/metrics.md.

    The name ends in its unit, or in `_total` if it counts.

    `scraped`: its value is read at each scrape, see `ScrapedMetric`.
    """

    name: str
    kind: str
    help_text: str
    labels: tuple[Label, ...]
    exporters: tuple[Exporter, ...]
    aggregation: Aggregation = Aggregation.SUM
    scraped: bool = False


class ScrapedMetric:
    """A gauge or counter whose value is read at each scrape, by a collector."""

    def __init__(self, name: str, help_text: str, labels: Sequence[str]) -> None:
        self._name = name
        self._help_text = help_text
        self._labels = labels
        self._family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily

    def family(self, values: Iterable[tuple[Sequence[str], float]]) -> Metric:
        """The metric with these values, each with the values of its labels."""
        family = self._family(self._name, self._help_text, labels=self._labels)
        for labels, value in values:
            family.add_metric(labels, value)
        return family


class WeightedHistogram(Collector):
    """A histogram that records several equal values in under a microsecond. Not thread-safe.

    prometheus_client's histogram records one value at a time under a lock: at each token, that would cost as much as
    relaying the token.
    """

    def __init__(self, name: str, help_text: str, label: str, buckets: Sequence[float]) -> None:
        self.name = name
        self._help_text = help_text
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
        family = HistogramMetricFamily(self.name, self._help_text, labels=[self._label])
        for value, child in list(self._children.items()):
            bounds = map(floatToGoString, self.upper_bounds)
            family.add_metric(
                [value], list(zip(bounds, itertools.accumulate(child.counts), strict=True)), sum_value=child.sum
            )
        return [family]


class WeightedChild:
    """The histogram of one label value."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * len(bounds)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self._bounds, value)] += times
        self.sum += value * times


class LoopCounter(Collector):
    """A counter without a lock, for the event loop's thread only: it is incremented at each flush."""

    def __init__(self, name: str, help_text: str, label: str) -> None:
        self.name = name
        self._help_text = help_text
        self._label = label
        self._children: dict[str, LoopChild] = {}

    def labels(self, value: str) -> LoopChild:
        """The counter of one value of the label."""
        child = self._children.get(value)
        if child is None:
            child = self._children[value] = LoopChild()
        return child

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(self.name, self._help_text, labels=[self._label])
        for value, child in list(self._children.items()):
            family.add_metric([value], child.value)
        return [family]


class LoopChild:
    """The counter of one label value."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, count: int) -> None:
        self.value += count


Instrument = Counter | Gauge | Histogram | WeightedHistogram | LoopCounter


class InstrumentSet:
    """Creates the instruments of one process, and keeps their definitions in order."""

    def __init__(self, exporter: Exporter) -> None:
        self.definitions: list[Definition] = []
        self._exporter = exporter
        self._instruments: list[tuple[Definition, Instrument]] = []

    def counter(self, name: str, help_text: str, labels: Sequence[Label], *exporters: Exporter) -> Counter:
        """A counter; its name ends in `_total`."""
        counter = Counter(name, help_text, [label.name for label in labels], registry=None)
        self._add(Definition(name, "counter", help_text, tuple(labels), exporters), counter)
        return counter

    def loop_counter(self, name: str, help_text: str, label: Label, *exporters: Exporter) -> LoopCounter:
        """A counter that is incremented at each flush; its name ends in `_total`."""
        counter = LoopCounter(name, help_text, label.name)
        self._add(Definition(name, "counter", help_text, (label,), exporters), counter)
        return counter

    def gauge(
        self,
        name: str,
        help_text: str,
        labels: Sequence[Label],
        *exporters: Exporter,
        aggregation: Aggregation = Aggregation.SUM,
    ) -> Gauge:
        """A gauge that each process sets for itself."""
        gauge = Gauge(name, help_text, [label.name for label in labels], registry=None)
        self._add(Definition(name, "gauge", help_text, tuple(labels), exporters, aggregation), gauge)
        return gauge

    def histogram(
        self, name: str, help_text: str, labels: Sequence[Label], buckets: Sequence[float], *exporters: Exporter
    ) -> Histogram:
        """A histogram in seconds."""
        histogram = Histogram(name, help_text, [label.name for label in labels], buckets=buckets, registry=None)
        self._add(Definition(name, "histogram", help_text, tuple(labels), exporters), histogram)
        return histogram

    def weighted_histogram(
        self, name: str, help_text: str, label: Label, buckets: Sequence[float], *exporters: Exporter
    ) -> WeightedHistogram:
        """A histogram in seconds that is recorded at each flush."""
        histogram = WeightedHistogram(name, help_text, label.name, buckets)
        self._add(Definition(name, "histogram", help_text, (label,), exporters), histogram)
        return histogram

    def scraped(
        self,
        name: str,
        help_text: str,
        labels: Sequence[Label],
        *exporters: Exporter,
        aggregation: Aggregation = Aggregation.SUM,
    ) -> ScrapedMetric:
        """A gauge, or a counter if its name ends in `_total`, whose value is read at each scrape."""
        kind = "counter" if name.endswith("_total") else "gauge"
        self.definitions.append(Definition(name, kind, help_text, tuple(labels), exporters, aggregation, scraped=True))
        return ScrapedMetric(name, help_text, [label.name for label in labels])

    def registry(self, *collectors: Collector) -> CollectorRegistry:
        """All that the process exports: its instruments, these collectors, and the metrics of the Python runtime."""
        registry = CollectorRegistry()
        instruments = [instrument for definition, instrument in self._instruments if self._exports(definition)]
        for collector in (*instruments, *collectors, REGISTRY):
            registry.register(collector)
        return registry

    def start_at_zero(self, model: Label, models: Sequence[str]) -> None:
        """Create all series of counters that can be known: `rate` misses the increase with which a series starts."""
        for definition, instrument in self._instruments:
            if self._exports(definition) and isinstance(instrument, Counter | LoopCounter):
                values = [models if label is model else label.values for label in definition.labels]
                if values and all(value is not None for value in values):
                    for combination in itertools.product(*(value or () for value in values)):
                        instrument.labels(*combination)

    def _exports(self, definition: Definition) -> bool:
        return self._exporter in definition.exporters

    def _add(self, definition: Definition, instrument: Instrument) -> None:
        self.definitions.append(definition)
        self._instruments.append((definition, instrument))
