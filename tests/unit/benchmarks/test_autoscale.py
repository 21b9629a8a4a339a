"""The autoscalers' formulas, the manifests that they are read from, and the simulated fleet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.autoscale import manifest
from benchmarks.autoscale.__main__ import MANIFESTS
from benchmarks.autoscale.chart import Line, Panel, ceiling, svg, thinned
from benchmarks.autoscale.course import Course, percentile
from benchmarks.autoscale.hpa import Hpa, wanted
from benchmarks.autoscale.keda import Autoscaler
from benchmarks.autoscale.load import DAY, Arrival, Service, between, day
from benchmarks.autoscale.manifest import ManifestError
from benchmarks.autoscale.model import fixed, play
from benchmarks.autoscale.page import block
from benchmarks.autoscale.policy import DOWN, UP, Direction, Policy, Rate
from benchmarks.autoscale.sweep import Score, Setting, best

AT_ONCE = Direction(0, (Rate("Percent", 100, 15), Rate("Pods", 100, 15)))
FREE = Policy(threshold=1, min_replicas=1, max_replicas=50, keda=False, up=AT_ONCE, down=AT_ONCE)


class TestWanted:
    @pytest.mark.parametrize(
        ("value", "threshold", "replicas", "expected"),
        [
            (10, 1, 5, 10),
            (10.01, 1, 5, 11),
            (0, 1, 5, 0),
            (3, 0.8, 1, 4),
            # Within a tenth nothing changes, either way; ten percent itself is within.
            (5.5, 1, 5, 5),
            (5.51, 1, 5, 6),
            (4.5, 1, 5, 5),
            (4.4, 1, 5, 5),
            (3.9, 1, 5, 4),
            (0.95, 1, 1, 1),
        ],
    )
    def test_ceil_and_tolerance(self, value: float, threshold: float, replicas: int, expected: int) -> None:
        assert wanted(value, threshold, replicas) == expected


class TestStabilization:
    def test_down_takes_the_most_of_its_window(self) -> None:
        hpa = Hpa(replace(FREE, down=replace(AT_ONCE, stabilization_s=300)))
        assert hpa.sync(0, 8, 8) == 8
        assert hpa.sync(15, 2, 8) == 8
        assert hpa.sync(285, 3, 8) == 8
        # At 300 the first recommendation is out of the window; the most since is 3.
        assert hpa.sync(300, 1, 8) == 3

    def test_up_takes_the_least_of_its_window(self) -> None:
        hpa = Hpa(replace(FREE, up=replace(AT_ONCE, stabilization_s=60)))
        assert hpa.sync(0, 2, 2) == 2
        assert hpa.sync(15, 9, 2) == 2
        assert hpa.sync(45, 6, 2) == 2
        assert hpa.sync(60, 9, 2) == 6

    def test_without_windows_it_follows(self) -> None:
        hpa = Hpa(FREE)
        assert [hpa.sync(0, 8, 2), hpa.sync(15, 1, 8), hpa.sync(30, 5, 1)] == [8, 1, 5]


class TestRates:
    def test_kubernetes_defaults_double_or_add_four_in_15_s(self) -> None:
        hpa = Hpa(replace(FREE, up=UP))
        assert hpa.sync(0, 50, 1) == 5
        assert hpa.sync(15, 50, 5) == 10
        assert hpa.sync(30, 50, 10) == 20

    def test_what_was_added_in_the_period_counts(self) -> None:
        hpa = Hpa(replace(FREE, up=Direction(0, (Rate("Pods", 2, 60),))))
        assert hpa.sync(0, 50, 1) == 3
        assert hpa.sync(15, 50, 3) == 3
        assert hpa.sync(45, 50, 3) == 3
        assert hpa.sync(60, 50, 3) == 5

    def test_down_by_percent_is_cut_off(self) -> None:
        hpa = Hpa(replace(FREE, down=Direction(0, (Rate("Percent", 20, 60),))))
        assert hpa.sync(0, 1, 9) == 7
        assert hpa.sync(30, 1, 7) == 7
        assert hpa.sync(60, 1, 7) == 5

    @pytest.mark.parametrize(("select", "expected"), [("Max", 10), ("Min", 6), ("Disabled", 5)])
    def test_which_policy_counts(self, select: str, expected: int) -> None:
        rules = Direction(0, (Rate("Percent", 100, 15), Rate("Pods", 1, 15)), select)
        assert Hpa(replace(FREE, up=rules)).sync(0, 50, 5) == expected

    @pytest.mark.parametrize(("select", "expected"), [("Max", 2), ("Min", 4), ("Disabled", 5)])
    def test_and_down(self, select: str, expected: int) -> None:
        rules = Direction(0, (Rate("Pods", 3, 15), Rate("Pods", 1, 15)), select)
        assert Hpa(replace(FREE, down=rules)).sync(0, 0.1, 5) == expected

    def test_the_least_and_the_most(self) -> None:
        hpa = Hpa(replace(FREE, min_replicas=2, max_replicas=6))
        assert hpa.sync(0, 50, 3) == 6
        assert hpa.sync(15, 0, 6) == 2

    def test_at_zero_it_is_off(self) -> None:
        assert Hpa(FREE).sync(0, 50, 0) == 0


class TestKeda:
    POLICY = replace(FREE, keda=True, min_replicas=0, polling_s=30, cooldown_s=120)

    def run(self, policy: Policy, values: list[tuple[float, float]], replicas: int = 0) -> list[int]:
        """Replicas at the given times, with what the metric says there."""
        scaler, seen = Autoscaler(policy), []
        for now, value in values:
            replicas = scaler.replicas(now, value, replicas)
            seen.append(replicas)
        return seen

    def test_the_first_comes_at_a_poll_and_the_rest_from_the_hpa(self) -> None:
        assert self.run(self.POLICY, [(0, 0), (15, 3), (29, 3), (30, 3), (45, 3)]) == [0, 0, 0, 3, 3]
        hpa_later = replace(self.POLICY, polling_s=20)
        assert self.run(hpa_later, [(0, 0), (15, 0), (20, 3), (30, 3)]) == [0, 0, 1, 3]

    def test_zero_comes_after_the_cooldown(self) -> None:
        times = [(float(now), 0.0 if now else 1.0) for now in range(0, 151, 15)]
        assert self.run(self.POLICY, times) == [1] * 8 + [0] * 3

    def test_what_is_not_above_the_activation_threshold_is_nothing(self) -> None:
        policy = replace(self.POLICY, activation=0.5)
        assert self.run(policy, [(0, 0.5), (30, 0.6)]) == [0, 1]

    def test_idle_replicas_stay(self) -> None:
        policy = replace(self.POLICY, idle_replicas=1, min_replicas=2)
        assert self.run(policy, [(0, 1), (150, 0), (180, 0), (210, 1)], 0) == [2, 1, 1, 2]

    def test_a_least_of_one_is_never_zero(self) -> None:
        policy = replace(self.POLICY, min_replicas=1)
        assert self.run(policy, [(float(now), 0) for now in range(0, 901, 15)], 1)[-1] == 1

    def test_an_hpa_alone_knows_no_zero(self) -> None:
        policy = replace(self.POLICY, keda=False)
        assert self.run(policy, [(float(now), 0) for now in range(0, 901, 15)], 3)[-1] == 1


SCALED_OBJECT: dict[str, Any] = {
    "kind": "ScaledObject",
    "metadata": {"name": "worker"},
    "spec": {
        "minReplicaCount": 0,
        "maxReplicaCount": 8,
        "pollingInterval": 5,
        "cooldownPeriod": 600,
        "advanced": {
            "horizontalPodAutoscalerConfig": {
                "behavior": {
                    "scaleUp": {"policies": [{"type": "Pods", "value": 2, "periodSeconds": 60}]},
                    "scaleDown": {"stabilizationWindowSeconds": 120, "selectPolicy": "Min"},
                }
            }
        },
        "triggers": [{"type": "prometheus", "metadata": {"threshold": "0.8", "activationThreshold": "0.1"}}],
    },
}


class TestManifest:
    def test_a_scaled_object(self) -> None:
        assert manifest.parse(SCALED_OBJECT) == Policy(
            threshold=0.8,
            activation=0.1,
            min_replicas=0,
            max_replicas=8,
            polling_s=5,
            cooldown_s=600,
            up=Direction(0, (Rate("Pods", 2, 60),)),
            down=Direction(120, DOWN.rates, "Min"),
        )

    def test_what_is_not_said_is_kedas_default(self) -> None:
        spec = {"triggers": [{"metadata": {"threshold": "1"}}]}
        policy = manifest.parse({"kind": "ScaledObject", "metadata": {"name": "w"}, "spec": spec})
        assert policy == Policy(1, 0, 100, polling_s=30, cooldown_s=300, up=UP, down=DOWN)

    def test_an_hpa(self) -> None:
        metric = {"type": "External", "external": {"target": {"type": "AverageValue", "averageValue": "800m"}}}
        spec = {"minReplicas": 2, "maxReplicas": 5, "metrics": [metric]}
        policy = manifest.parse({"kind": "HorizontalPodAutoscaler", "metadata": {"name": "w"}, "spec": spec})
        assert policy == Policy(0.8, 2, 5, keda=False)

    def test_a_missing_field_is_named(self) -> None:
        with pytest.raises(ManifestError, match="triggers is missing"):
            manifest.parse({"kind": "ScaledObject", "metadata": {"name": "w"}, "spec": {}})

    def test_one_of_a_folder_by_its_name(self, tmp_path: Path) -> None:
        import yaml

        other = SCALED_OBJECT | {"metadata": {"name": "other"}}
        (tmp_path / "a.yaml").write_text(yaml.safe_dump_all([{"kind": "Service"}, SCALED_OBJECT]))
        assert manifest.load(tmp_path).threshold == 0.8
        (tmp_path / "b.yaml").write_text(yaml.safe_dump(other))
        assert manifest.load(tmp_path, "other").threshold == 0.8
        with pytest.raises(ManifestError, match="worker, other"):
            manifest.load(tmp_path)

    def test_the_clusters_own(self) -> None:
        policy = manifest.load(MANIFESTS, "worker")
        assert policy.keda
        assert policy.min_replicas == 0
        assert policy.max_replicas > 1
        assert policy.threshold > 0


SERVICE = Service(slots=2, first_token_s=1, token_s=1, cold_start_s=90, drain_s=30)


class TestModel:
    def test_a_fixed_fleet(self) -> None:
        """Two slots, three jobs of ten seconds at once: the third waits for ten."""
        course = fixed([Arrival(1.0, 10)] * 3, SERVICE, 1, 60)
        assert sorted(course.waits) == [0, 0, 10]
        assert course.gpu_hours == pytest.approx(60 / 3600)
        assert max(course.waiting) == 1

    def test_the_first_job_waits_for_a_poll_a_scrape_and_a_cold_start(self) -> None:
        policy = replace(FREE, keda=True, min_replicas=0, cooldown_s=60)
        course = play([Arrival(1.0, 10)], SERVICE, policy, 300)
        (wait,) = course.waits
        # Scraped at 15, polled at 30, ready 90 later.
        assert wait == pytest.approx(30 + 90 - 1)
        assert max(course.replicas) == 1
        assert course.replicas[-1] == 0
        # It ends at 130; KEDA has seen it at 120 last, and lets go at the first poll 60 later.
        assert course.pod_seconds == pytest.approx(180 - 30, abs=15)

    def test_what_a_drained_worker_cannot_finish_goes_first_elsewhere(self) -> None:
        """Two short jobs keep the first worker; two long ones get a second, which goes once the short have ended."""
        policy = replace(FREE, min_replicas=1, max_replicas=2)
        jobs = [Arrival(0.0, 150), Arrival(0.0, 150), Arrival(1.0, 400), Arrival(1.0, 400)]
        course = play(jobs, SERVICE, policy, 600)
        second = 15 + 90  # scraped and synced at 15, then its start
        assert course.waits == [0, 0, second - 1, second - 1], "handed back, they wait again, which is not counted"
        assert course.handed_back == 2
        assert max(course.replicas) == 2
        ends = [number * 5 for number, running in enumerate(course.running) if running]
        assert max(ends) == pytest.approx(second + 400, abs=5), "they go on where they were"

    def test_all_jobs_of_a_day_are_there(self) -> None:
        service = Service()
        arrivals = between(day(1, service), 0, 2 * 3600)
        course = fixed(arrivals, service, 8, 2 * 3600)
        assert len(course.waits) == len(arrivals)
        assert day(1, service) == day(1, service)
        assert all(0 <= item.at < DAY for item in arrivals)


def test_percentiles() -> None:
    assert [percentile(list(range(1, 101)), share) for share in (0.5, 0.95, 1)] == [51, 96, 100]
    assert percentile([], 0.5) == 0


def test_waits_by_window() -> None:
    course = Course(5.0, waits=[1, 9, 4], submitted=[0, 10, 95], waiting=[0] * 36)
    assert course.waits_by_window(90, 0.99) == [9, 4]


def test_the_cheapest_that_keeps_the_wait_is_best() -> None:
    scores = [
        Score(Setting(1, down, 1), cost, 0, p95, 0, 0, 0) for down, cost, p95 in ((1, 5, 40), (2, 9, 20), (3, 8, 29))
    ]
    assert best(scores).setting.down_s == 3
    assert best(scores[:1]).setting.down_s == 1


class TestChart:
    def test_it_is_xml_with_its_lines(self) -> None:
        text = svg("a <day>", [Panel("jobs & more", [Line("x", [0, 5, 2]), Line("y", [1], step=True)])], 24)
        paths = [item for item in ElementTree.fromstring(text).iter() if item.tag.endswith("path")]  # noqa: S314
        assert len(paths) == 2

    def test_peaks_stay(self) -> None:
        assert max(thinned([0] * 1000 + [7] + [0] * 1000, 100)) == 7
        assert len(thinned(list(range(2000)), 100)) == 100

    @pytest.mark.parametrize(("value", "expected"), [(0, 1), (1, 1), (3, 4), (8.1, 10), (622, 800), (0.03, 0.04)])
    def test_axes_end_at_round_numbers(self, value: float, expected: float) -> None:
        assert ceiling(value) == pytest.approx(expected)


def test_only_the_named_block_of_a_page_changes() -> None:
    page = "a\n<!-- day: begin -->\nold\n<!-- day: end -->\nb"
    assert block("day", "new", page) == "a\n<!-- day: begin -->\nnew\n<!-- day: end -->\nb"
    with pytest.raises(ValueError, match="no markers"):
        block("sweep", "new", page)
