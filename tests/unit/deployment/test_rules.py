"""The rules as promtool sees them: they parse, and their own tests see each alert fire."""

from __future__ import annotations

from tests.support.prometheus import OBSERVE, needs_prometheus, promtool

pytestmark = needs_prometheus


def test_the_rules_parse() -> None:
    assert "SUCCESS" in promtool("check", "rules", str(OBSERVE / "rules" / "headrace.rules.yml"))


def test_the_rules_do_what_their_tests_say() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(OBSERVE / "rules" / "headrace.test.yml"))


def test_prometheus_takes_the_configurations() -> None:
    for kind in ("one-box", "compose"):  # Debian's build knows no Kubernetes
        assert "SUCCESS" in promtool("check", "config", str(OBSERVE / f"prometheus.{kind}.yml"))
