"""promtool accepts the rules and Prometheus's configurations, and the rules pass their own tests."""

from __future__ import annotations

from tests.support.prometheus import OBSERVE, needs_prometheus, promtool

pytestmark = needs_prometheus


def test_the_rules_parse() -> None:
    assert "SUCCESS" in promtool("check", "rules", str(OBSERVE / "rules" / "headrace.rules.yml"))


def test_the_rules_pass_their_tests() -> None:
    files = sorted(map(str, (OBSERVE / "rules").glob("*.test.yml")))
    assert promtool("test", "rules", *files).count("SUCCESS") == len(files) == 2


def test_the_configurations_are_valid() -> None:
    for kind in ("one-box", "compose"):  # Debian's build does not support Kubernetes
        assert "SUCCESS" in promtool("check", "config", str(OBSERVE / f"prometheus.{kind}.yml"))
